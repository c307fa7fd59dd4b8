"""CogVLM as the zoo sees it."""

from __future__ import annotations

from sat_models.models.cogvlm.prompts import STYLES
from sat_models.models.common.family import Family

FAMILY = Family(
    name="cogvlm",
    models=("CogVLMModel", "FineTuneTrainCogVLMModel", "FineTuneTestCogVLMModel"),
    styles=STYLES,
)
