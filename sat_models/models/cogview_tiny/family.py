"""The bundled painter, as the zoo sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sat_models.models.common.family import Family
from sat_models.models.common.groups import IMAGE_TOKEN_GROUPS, ParameterGroup

if TYPE_CHECKING:
    from mixins.base import ZooModel


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.cogview_tiny.model import CogViewTinyModel

    return (CogViewTinyModel,)


FAMILY = Family(
    name="cogview_tiny",
    models=("CogViewTinyModel",),
    classes=_classes,
    styles={},
    groups={**IMAGE_TOKEN_GROUPS, "codec": ParameterGroup(("mixins.codec.*",), adapted=False)},
)
