"""Sizes of CogAgent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sat_models.config.base import require_divides, require_flags, require_positive
from sat_models.config.towers import CrossTowerConfig
from sat_models.errors import ConfigError
from sat_models.models.cogvlm.config import CogVLMConfig


@dataclass(frozen=True, kw_only=True)
class CogAgentConfig(CogVLMConfig):
    """CogAgent: a CogVLM with a high-resolution tower that its layers read by cross-attention.

    Attributes:
        cross_image_pix: side of the square high-resolution picture in pixels.
        cross_attn_hidden_size: width of the tower's features.
        cross_hidden_size_per_attention_head: width of one head of cross-attention.
        is_decoder: which layers have cross-attention: all (True), or one flag for each.
        cross_vision_args: the tower.
    """

    model_class: str = "CogAgentModel"
    cross_image_pix: int
    cross_attn_hidden_size: int
    cross_hidden_size_per_attention_head: int
    is_decoder: bool | tuple[bool, ...] = True
    cross_vision_args: CrossTowerConfig = field(default_factory=CrossTowerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.cross_vision_args, dict):
            object.__setattr__(self, "cross_vision_args", CrossTowerConfig.from_dict(self.cross_vision_args))
        require_positive(self, "cross_image_pix", "cross_attn_hidden_size", "cross_hidden_size_per_attention_head")
        tower = self.cross_vision_args
        require_divides("cross_image_pix", self.cross_image_pix, tower.patch_size, "cross_vision_args.patch_size")
        if self.cross_attn_hidden_size != tower.width:
            raise ConfigError(
                f"cross_attn_hidden_size is {self.cross_attn_hidden_size}, but the high-resolution tower "
                f"(cross_vision_args) is {tower.width} wide"
            )
        object.__setattr__(self, "is_decoder", require_flags("is_decoder", self.is_decoder, self.num_layers))

    @property
    def num_cross_patches(self) -> int:
        """High-resolution features per picture."""
        return (self.cross_image_pix // self.cross_vision_args.patch_size) ** 2

    def cross_attention_args(self) -> dict[str, Any]:
        """The arguments with which SAT's `BaseTransformer` makes the cross-attention."""
        return {
            "is_decoder": self.is_decoder if isinstance(self.is_decoder, bool) else list(self.is_decoder),
            "cross_attn_hidden_size": self.cross_attn_hidden_size,
            "cross_hidden_size_per_attention_head": self.cross_hidden_size_per_attention_head,
        }

    def to_dict(self) -> dict[str, Any]:
        """As the content of a `model_config.json`."""
        own = {**self.cross_attention_args(), "cross_vision_args": self.cross_vision_args.to_dict()}
        return {**super().to_dict(), **own}
