"""CogView4, as the zoo sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sat_models.models.common.family import Family

if TYPE_CHECKING:
    from sat_models.models.common.hf_form import HFForm
    from sat_models.models.common.thin import ThinModel


def _classes() -> Iterable[type[ThinModel]]:
    from sat_models.models.cogview4.model import CogView4Model

    return (CogView4Model,)


def _forms() -> Iterable[HFForm]:
    from sat_models.models.cogview4.keys import FORM

    return (FORM,)


FAMILY = Family(name="cogview4", models=("CogView4Model",), classes=_classes, styles={}, forms=_forms)
