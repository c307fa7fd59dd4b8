"""CogView2, as the zoo sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sat_models.models.common.family import Family
from sat_models.models.common.groups import IMAGE_TOKEN_GROUPS

if TYPE_CHECKING:
    from mixins.base import ZooModel


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.cogview2.model import CogLMModel, DirectSRModel, IterativeSRModel

    return (CogLMModel, DirectSRModel, IterativeSRModel)


def _config_of_weights(shapes: Mapping[str, Sequence[int]], told: Mapping[str, Any]) -> dict[str, Any] | None:
    from sat_models.models.cogview2.config import config_of_weights

    return config_of_weights(shapes, told)


FAMILY = Family(
    name="cogview2",
    models=("CogLMModel", "DirectSRModel", "IterativeSRModel"),
    classes=_classes,
    styles={},
    groups=IMAGE_TOKEN_GROUPS,
    config_of_weights=_config_of_weights,
)
