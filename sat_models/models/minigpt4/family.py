"""MiniGPT-4 and v2, as the zoo sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sat_models.models.common.family import Family
from sat_models.models.common.groups import LLAMA_GROUPS, PROJECTOR, TOWER, ParameterGroup
from sat_models.models.minigpt4.prompts import STYLES

if TYPE_CHECKING:
    from mixins.base import ZooModel


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.minigpt4.model import MiniGPT4Model

    return (MiniGPT4Model,)


FAMILY = Family(
    name="minigpt4",
    models=("MiniGPT4Model",),
    classes=_classes,
    styles=STYLES,
    groups={
        "vit": ParameterGroup((*TOWER.patterns, "mixins.eva.vit_model.vit.*"), vision=True),
        "qformer": ParameterGroup(("mixins.eva.vit_model.qformer.*",), vision=True),
        "projector": PROJECTOR,
        **LLAMA_GROUPS,
    },
)
