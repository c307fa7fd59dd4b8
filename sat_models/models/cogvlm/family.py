"""CogVLM, as the zoo sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sat_models.models.cogvlm.prompts import STYLES
from sat_models.models.common.family import Family
from sat_models.models.common.groups import LLAMA_GROUPS, PROJECTOR, TOWER, ParameterGroup

if TYPE_CHECKING:
    from mixins.base import ZooModel
    from sat_models.models.common.hf_form import HFForm


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.cogvlm.model import CogVLMModel, FineTuneTestCogVLMModel, FineTuneTrainCogVLMModel

    return (CogVLMModel, FineTuneTrainCogVLMModel, FineTuneTestCogVLMModel)


def _forms() -> Iterable[HFForm]:
    from sat_models.models.cogvlm.keys import FORM

    return (FORM,)


FAMILY = Family(
    name="cogvlm",
    models=("CogVLMModel", "FineTuneTrainCogVLMModel", "FineTuneTestCogVLMModel"),
    classes=_classes,
    styles=STYLES,
    groups={
        "vit": TOWER,
        "projector": ParameterGroup(
            (*PROJECTOR.patterns, "mixins.eva.boi", "mixins.eva.eoi", "mixins.eva.pos_embed"), vision=True
        ),
        "vision_expert": ParameterGroup(("mixins.mlp.vision_*", "mixins.rotary.vision_*"), vision=True),
        **LLAMA_GROUPS,
    },
    forms=_forms,
)
