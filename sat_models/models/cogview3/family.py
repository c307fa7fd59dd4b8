"""CogView3-Plus, as the zoo sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sat_models.models.common.family import Family
from sat_models.models.common.groups import TRANSFORMER_GROUPS, ParameterGroup

if TYPE_CHECKING:
    from mixins.base import ZooModel
    from sat_models.models.common.hf_form import HFForm


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.cogview3.model import CogView3PlusModel

    return (CogView3PlusModel,)


def _forms() -> Iterable[HFForm]:
    from sat_models.models.cogview3.keys import FORM

    return (FORM,)


def _config_of_weights(shapes: Mapping[str, Sequence[int]], told: Mapping[str, Any]) -> dict[str, Any] | None:
    from sat_models.models.cogview3.config import config_of_weights

    return config_of_weights(shapes, told)


FAMILY = Family(
    name="cogview3",
    models=("CogView3PlusModel",),
    classes=_classes,
    styles={},
    groups={
        "language": TRANSFORMER_GROUPS["language"],  # as the layers of SAT's transformer are called everywhere
        "modulation": ParameterGroup(("mixins.adaln.*",), adapted=False),
        "conditions": ParameterGroup(("time_embed.*", "label_emb.*"), adapted=False),
        "patches": ParameterGroup(("mixins.patch_embed.*", "mixins.final_layer.*"), adapted=False),
    },
    forms=_forms,
    config_of_weights=_config_of_weights,
)
