"""InternLM-XComposer2, as the zoo sees it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sat_models.models.common.family import Family
from sat_models.models.common.groups import LLAMA_GROUPS, PROJECTOR, TOWER, ParameterGroup
from sat_models.models.xcomposer2.prompts import STYLES

if TYPE_CHECKING:
    from mixins.base import ZooModel
    from sat_models.config import LanguageConfig
    from sat_models.models.common.hf_form import HFForm
    from sat_models.processing.tokens import Tokenizer


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.xcomposer2.model import XComposer2Model

    return (XComposer2Model,)


def _forms() -> Iterable[HFForm]:
    from sat_models.models.xcomposer2.keys import FORM

    return (FORM,)


def _tokenizer(config: LanguageConfig, path: str | os.PathLike[str]) -> Tokenizer:
    """Raises as `open_tokenizer`."""
    from sat_models.models.xcomposer2.tokens import open_tokenizer

    return open_tokenizer(config, path)


FAMILY = Family(
    name="xcomposer2",
    models=("XComposer2Model",),
    classes=_classes,
    styles=STYLES,
    groups={
        "vit": TOWER,
        "projector": ParameterGroup((*PROJECTOR.patterns, "mixins.eva.newline", "mixins.eva.separator"), vision=True),
        "plora": ParameterGroup(("mixins.plora.*",), vision=True, adapted=False),
        **LLAMA_GROUPS,
    },
    forms=_forms,
    tokenizer=_tokenizer,
)
