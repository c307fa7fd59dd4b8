"""Talk to a model in the browser: upload a picture, ask, see boxes drawn. `--help` lists the flags."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sat_models.errors import run_script
from sat_models.serving.web import main

if __name__ == "__main__":
    run_script(main)
