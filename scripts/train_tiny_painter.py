"""Train the bundled painter from random weights. `--help` lists the flags."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_models.commands.train_tiny_painter import command

if __name__ == "__main__":
    command()
