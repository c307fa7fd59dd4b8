"""As `cli_demo_sat.py`, with the name that goes with Hugging Face weights: an id, or a folder in their form."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sat_models.errors import run_script
from sat_models.serving.cli import main

if __name__ == "__main__":
    run_script(main)
