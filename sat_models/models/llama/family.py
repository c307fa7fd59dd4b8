"""LLaMA as the zoo sees it."""

from __future__ import annotations

from sat_models.models.common.family import Family
from sat_models.processing.prompts import BASE

FAMILY = Family(
    name="llama",
    models=("LLaMAModel",),
    styles={"base": BASE},
)
