"""A golden painter with all its parts, small enough to draw in a second."""

from __future__ import annotations

import sys
from pathlib import Path

from serving_http import ROOT

sys.path.insert(0, str(ROOT / "tests"))
from painter_golden import sat_folder

from sat_models.zoo import Painter, load_pretrained

GOLDEN = ROOT / "tests" / "golden" / "cogview3-plus-mini"
LONG = "A red circle and a blue square and a green triangle"
"""More than the 16 tokens that it reads."""


def golden_painter(place: Path) -> Painter:
    """It in fp32 on a CPU, with a copy of its files in `place`."""
    return load_pretrained(sat_folder(GOLDEN, place), device="cpu", dtype="float32", keep="all")
