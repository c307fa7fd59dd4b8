"""Prove that training's evaluation, `generate` and a server answer alike. `--help` lists the flags."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_models.commands.prove_served import command

if __name__ == "__main__":
    command()
