"""What transformers wants beside a model's weights, so that `AutoProcessor` opens the folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sat_models.config import LanguageConfig


@dataclass(frozen=True, kw_only=True)
class HFProcessor:
    """The processor of a model in transformers' terms.

    Attributes:
        config: of the model that is written; it may have a row more for the token of images.
        image: the text that stands for an image in prompts.
        processor: content of `processor_config.json`.
        images: content of `preprocessor_config.json`.
        token_names: tokens that the processor asks the tokenizer for, by the attributes that it asks by.
        added: tokens that the tokenizer's files lack: name to id.
    """

    config: LanguageConfig
    image: str
    processor: Mapping[str, Any]
    images: Mapping[str, Any]
    token_names: Mapping[str, str] = field(default_factory=dict)
    added: Mapping[str, int] = field(default_factory=dict)
