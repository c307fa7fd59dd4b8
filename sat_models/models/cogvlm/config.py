"""Sizes of CogVLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sat_models.config.language import LLaMAConfig, VisionLanguageConfig


@dataclass(frozen=True, kw_only=True)
class CogVLMConfig(LLaMAConfig, VisionLanguageConfig):
    """CogVLM: a LLaMA with visual experts, and a vision tower in `eva_args`.

    Attributes:
        vision_qkv_bias: whether the visual experts' queries, keys and values have biases.
    """

    model_class: str = "CogVLMModel"
    vision_qkv_bias: bool = False

    _LATER: ClassVar[tuple[str, ...]] = (*LLaMAConfig._LATER, "vision_qkv_bias")
