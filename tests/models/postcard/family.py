"""Its entry."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from postcard.prompts import STYLES
from sat_models.models.common.family import Family
from sat_models.models.common.groups import LLAMA_GROUPS, ParameterGroup

if TYPE_CHECKING:
    from mixins.base import ZooModel
    from sat_models.config import LanguageConfig
    from sat_models.models.common.hf_form import HFForm
    from sat_models.processing.tokens import Tokenizer


def _classes() -> Iterable[type[ZooModel]]:
    from postcard.model import PostcardModel

    return (PostcardModel,)


def _forms() -> Iterable[HFForm]:
    from postcard.keys import FORM

    return (FORM,)


def _tokenizer(config: LanguageConfig, path: str | os.PathLike[str]) -> Tokenizer:
    from postcard.tokens import SmallLetters

    return SmallLetters.from_file(path)


def _parts(text: str, width: int, height: int) -> dict[str, Any]:
    """The greeting, if there is one."""
    return {"greeting": text.split()[0]} if text.strip() else {}


FAMILY = Family(
    name="postcard",
    models=("PostcardModel",),
    classes=_classes,
    styles=STYLES,
    groups={"stamp": ParameterGroup(("mixins.eva.stamp", "mixins.eva.patches.*"), vision=True), **LLAMA_GROUPS},
    forms=_forms,
    tokenizer=_tokenizer,
    parts=_parts,
)
