"""Sizes of CogVLM."""

from __future__ import annotations

from dataclasses import dataclass

from sat_models.config.language import LLaMAConfig, PictureConfig


@dataclass(frozen=True, kw_only=True)
class CogVLMConfig(LLaMAConfig, PictureConfig):
    """CogVLM: a LLaMA with visual experts, and a vision tower in `eva_args`."""

    model_class: str = "CogVLMModel"
