"""InternVL 1.1 to 3, as the zoo sees it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sat_models.models.common.family import Family
from sat_models.models.common.groups import LLAMA_GROUPS, PROJECTOR, TOWER
from sat_models.models.internvl.prompts import STYLES

if TYPE_CHECKING:
    from mixins.base import ZooModel
    from sat_models.models.common.hf_form import HFForm
    from sat_models.models.internvl.config import InternVLConfig
    from sat_models.processing.tokens import Tokenizer


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.internvl.model import InternVLModel

    return (InternVLModel,)


def _forms() -> Iterable[HFForm]:
    from sat_models.models.internvl.keys import FORM, ORIGINAL

    return (FORM, ORIGINAL)


def _tokenizer(config: InternVLConfig, path: str | os.PathLike[str]) -> Tokenizer:
    from sat_models.models.internvl.tokens import open_tokenizer

    return open_tokenizer(config, path)


FAMILY = Family(
    name="internvl",
    models=("InternVLModel",),
    classes=_classes,
    styles=STYLES,
    groups={"vit": TOWER, "projector": PROJECTOR, **LLAMA_GROUPS},
    forms=_forms,
    tokenizer=_tokenizer,
)
