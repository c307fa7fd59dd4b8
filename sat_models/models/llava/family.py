"""LLaVA 1.0 and 1.5 as the zoo sees it."""

from __future__ import annotations

from sat_models.models.common.family import Family
from sat_models.models.llava.prompts import STYLES

FAMILY = Family(
    name="llava",
    models=("LLaVAModel",),
    styles=STYLES,
)
