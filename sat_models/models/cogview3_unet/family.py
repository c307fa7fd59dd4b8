"""CogView3-Base and -Relay, as the zoo sees them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sat_models.models.common.family import Family

if TYPE_CHECKING:
    from sat_models.models.common.hf_form import HFForm
    from sat_models.models.common.thin import ThinModel


def _classes() -> Iterable[type[ThinModel]]:
    from sat_models.models.cogview3_unet.model import CogView3UNetModel

    return (CogView3UNetModel,)


def _forms() -> Iterable[HFForm]:
    from sat_models.models.cogview3_unet.keys import FORM

    return (FORM,)


def _config_of_weights(shapes: Mapping[str, Sequence[int]], told: Mapping[str, Any]) -> dict[str, Any] | None:
    from sat_models.models.cogview3_unet.config import config_of_weights

    return config_of_weights(shapes, told)


FAMILY = Family(
    name="cogview3_unet",
    models=("CogView3UNetModel",),
    classes=_classes,
    styles={},
    forms=_forms,
    config_of_weights=_config_of_weights,
    told_by_name=True,
)
