"""Sizes of CogView4.

Source: github.com/THUDM/CogView4, README (sizes, guidance); diffusers 0.42.1, `CogView4Pipeline` (the rest).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sat_models.config.thin import FlowConfig

MODEL_CLASS = "CogView4Model"


@dataclass(frozen=True, kw_only=True)
class CogView4Config(FlowConfig):
    """CogView4."""

    model_class: str = MODEL_CLASS
    in_channels: int = 16
    time_embed_dim: int = 512
    text_hidden_size: int = 4096
    text_length: int = 1024
    guidance: float = 3.5
    least_side: int = 512
    most_side: int = 2048
    most_pixels: int = 2**21
    text_model: str = "THUDM/glm-4-9b-hf"

    SAT_PREFIX: ClassVar[str] = ""
