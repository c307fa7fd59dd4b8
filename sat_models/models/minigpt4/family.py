"""MiniGPT-4 and v2 as the zoo sees it."""

from __future__ import annotations

from sat_models.models.common.family import Family
from sat_models.models.minigpt4.prompts import STYLES

FAMILY = Family(
    name="minigpt4",
    models=("MiniGPT4Model",),
    styles=STYLES,
)
