"""CogVideo, as the zoo sees it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sat_models.models.common.family import Family
from sat_models.models.common.groups import IMAGE_TOKEN_GROUPS

if TYPE_CHECKING:
    from mixins.base import ZooModel


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.cogvideo.model import CogVideoModel

    return (CogVideoModel,)


def _config_of_weights(shapes: Mapping[str, Sequence[int]], told: Mapping[str, Any]) -> dict[str, Any] | None:
    from sat_models.models.cogvideo.config import config_of_weights

    return config_of_weights(shapes, told)


FAMILY = Family(
    name="cogvideo",
    models=("CogVideoModel",),
    classes=_classes,
    styles={},
    groups=IMAGE_TOKEN_GROUPS,
    config_of_weights=_config_of_weights,
)
