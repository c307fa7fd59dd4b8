"""CogAgent, CogVLM with a high-resolution branch, as the zoo sees it."""

from __future__ import annotations

from sat_models.models.cogvlm.prompts import STYLES
from sat_models.models.common.family import Family

FAMILY = Family(
    name="cogagent",
    models=("CogAgentModel", "FineTuneTrainCogAgentModel", "FineTuneTestCogAgentModel"),
    styles=STYLES,
)
