"""Time the C kernels of a decode step beside torch's operators. `--help` lists the flags."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_models.commands.measure_kernels import command

if __name__ == "__main__":
    command()
