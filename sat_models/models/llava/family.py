"""LLaVA 1.0 and 1.5, as the zoo sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sat_models.models.common.family import Family
from sat_models.models.common.groups import LLAMA_GROUPS, PROJECTOR, TOWER
from sat_models.models.llava.prompts import STYLES

if TYPE_CHECKING:
    from mixins.base import ZooModel
    from sat_models.models.common.hf_form import HFForm


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.llava.model import LLaVAModel

    return (LLaVAModel,)


def _forms() -> Iterable[HFForm]:
    from sat_models.models.llava.keys import FORM, ORIGINAL

    return (FORM, ORIGINAL)


FAMILY = Family(
    name="llava",
    models=("LLaVAModel",),
    classes=_classes,
    styles=STYLES,
    groups={"vit": TOWER, "projector": PROJECTOR, **LLAMA_GROUPS},
    forms=_forms,
)
