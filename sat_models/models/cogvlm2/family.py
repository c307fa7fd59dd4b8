"""CogVLM2, as the zoo sees it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sat_models.models.cogvlm.family import FAMILY as COGVLM
from sat_models.models.cogvlm2.prompts import OWN_NAMES, STYLES
from sat_models.models.common.family import Family
from sat_models.models.common.groups import PROJECTOR, ParameterGroup

if TYPE_CHECKING:
    from mixins.base import ZooModel
    from sat_models.config import LanguageConfig
    from sat_models.models.common.hf_form import HFForm
    from sat_models.processing.tokens import Tokenizer


def _classes() -> Iterable[type[ZooModel]]:
    from sat_models.models.cogvlm2.model import CogVLM2Model

    return (CogVLM2Model,)


def _forms() -> Iterable[HFForm]:
    from sat_models.models.cogvlm2.keys import FORM

    return (FORM,)


def _tokenizer(config: LanguageConfig, path: str | os.PathLike[str]) -> Tokenizer:
    """Llama 3's. Raises as `JsonTokenizer.from_file`."""
    from sat_models.processing.byte_tokens import JsonTokenizer

    return JsonTokenizer.from_file(path, begin=config.bos_token_id, ends=config.eos_token_ids, pad=config.pad_token_id)


CONVOLVED = ParameterGroup((*PROJECTOR.patterns, "mixins.eva.conv.*", "mixins.eva.boi", "mixins.eva.eoi"), vision=True)
"""The part between the tower and the language model."""

FAMILY = Family(
    name="cogvlm2",
    models=("CogVLM2Model",),
    classes=_classes,
    styles=STYLES,
    own_names=OWN_NAMES,
    groups={**COGVLM.groups, "projector": CONVOLVED},
    forms=_forms,
    tokenizer=_tokenizer,
)
