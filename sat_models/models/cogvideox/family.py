"""CogVideoX, as the zoo sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sat_models.models.common.family import Family
from sat_models.models.common.groups import TRANSFORMER_GROUPS, ParameterGroup

if TYPE_CHECKING:
    from mixins.base import ZooModel
    from sat_models.models.common.hf_form import HFForm


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.cogvideox.model import CogVideoXModel

    return (CogVideoXModel,)


def _forms() -> Iterable[HFForm]:
    from sat_models.models.cogvideox.keys import FORM

    return (FORM,)


def _config_of_weights(shapes: Mapping[str, Sequence[int]], told: Mapping[str, Any]) -> dict[str, Any] | None:
    from sat_models.models.cogvideox.released import config_of_weights

    return config_of_weights(shapes, told)


FAMILY = Family(
    name="cogvideox",
    models=("CogVideoXModel",),
    classes=_classes,
    styles={},
    groups={
        "language": TRANSFORMER_GROUPS["language"],
        "modulation": ParameterGroup(("mixins.adaln_layer.adaLN_modulations.*",), adapted=False),
        "norms": ParameterGroup(
            ("mixins.adaln_layer.query_layernorm_list.*", "mixins.adaln_layer.key_layernorm_list.*"), adapted=False
        ),
        "conditions": ParameterGroup(("time_embed.*", "ofs_embed.*"), adapted=False),
        "patches": ParameterGroup(("mixins.patch_embed.*", "mixins.final_layer.*"), adapted=False),
        "positions": ParameterGroup(("mixins.pos_embed.*",), adapted=False),
        "embeddings": ParameterGroup(("transformer.position_embeddings.*",), adapted=False),
    },
    forms=_forms,
    config_of_weights=_config_of_weights,
)
