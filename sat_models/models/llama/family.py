"""A plain LLaMA, as the zoo sees it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sat_models.models.common.family import Family
from sat_models.models.common.groups import LLAMA_GROUPS
from sat_models.processing.prompts import BASE

if TYPE_CHECKING:
    from mixins.base import ZooModel
    from sat_models.models.common.hf_form import HFForm


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.common.llama import LLaMAModel

    return (LLaMAModel,)


def _forms() -> Iterable[HFForm]:
    from sat_models.models.llama.keys import FORM

    return (FORM,)


FAMILY = Family(
    name="llama",
    models=("LLaMAModel",),
    classes=_classes,
    styles={"base": BASE},
    groups=LLAMA_GROUPS,
    forms=_forms,
)
