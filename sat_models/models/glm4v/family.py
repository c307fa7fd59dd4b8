"""GLM-4V, as the zoo sees it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sat_models.models.cogvlm2.family import CONVOLVED
from sat_models.models.common.family import Family
from sat_models.models.common.groups import LLAMA_GROUPS, TOWER
from sat_models.models.glm4v.prompts import STYLES

if TYPE_CHECKING:
    from mixins.base import ZooModel
    from sat_models.models.common.hf_form import HFForm
    from sat_models.models.glm4v.config import GLM4VConfig
    from sat_models.processing.tokens import Tokenizer


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.glm4v.model import GLM4VModel

    return (GLM4VModel,)


def _forms() -> Iterable[HFForm]:
    from sat_models.models.glm4v.keys import FORM

    return (FORM,)


def _tokenizer(config: GLM4VConfig, path: str | os.PathLike[str]) -> Tokenizer:
    from sat_models.models.glm4v.tokens import glm4_tokenizer

    return glm4_tokenizer(config, path)


FAMILY = Family(
    name="glm4v",
    models=("GLM4VModel",),
    classes=_classes,
    styles=STYLES,
    groups={"vit": TOWER, "projector": CONVOLVED, **LLAMA_GROUPS},
    forms=_forms,
    tokenizer=_tokenizer,
)
