"""Measure what holding answers to a form costs. `--help` lists the flags."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_models.commands.measure_strict import command

if __name__ == "__main__":
    command()
