"""VisualGLM-6B and its language model, ChatGLM-6B, as the zoo sees it."""

from __future__ import annotations

from sat_models.models.common.family import Family
from sat_models.models.visualglm.prompts import STYLES

FAMILY = Family(
    name="visualglm",
    models=("VisualGLMModel", "FineTuneVisualGLMModel", "ChatGLMModel"),
    styles=STYLES,
)
