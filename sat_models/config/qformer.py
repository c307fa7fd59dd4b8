"""Sizes of BLIP-2's Q-Former, a part of the configs of VisualGLM and MiniGPT-4."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

from sat_models.config.base import build, fields_to_dict, require_divides, require_flags, require_positive, take_known
from sat_models.config.language import VisionLanguageConfig
from sat_models.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class QFormerConfig:
    """The Q-Former of BLIP-2 (`qformer_args`). Released: 12 layers, width 768, 12 heads, 32 queries.

    Attributes:
        vocab_size: number of queries, which SAT keeps as word embeddings.
        is_decoder: which layers have cross-attention (every second one in the released ones).
        cross_attn_hidden_size: width of the tower that it reads.
        inner_hidden_size: four times the width where a config does not say.
        proj_size: width that the projector behind it gives; None is the language model's.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int = 32
    is_decoder: bool | tuple[bool, ...]
    cross_attn_hidden_size: int
    layernorm_epsilon: float = 1e-12
    inner_hidden_size: int | None = None
    proj_size: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_positive(
            self, "num_layers", "hidden_size", "num_attention_heads", "vocab_size", "cross_attn_hidden_size"
        )
        for name in ("inner_hidden_size", "proj_size"):
            if getattr(self, name) is not None:
                require_positive(self, name)
        require_divides("qformer_args.hidden_size", self.hidden_size, self.num_attention_heads, "num_attention_heads")
        flags = require_flags("qformer_args.is_decoder", self.is_decoder, self.num_layers)
        object.__setattr__(self, "is_decoder", flags)

    @property
    def inner_width(self) -> int:
        """Inner width of the MLPs."""
        return self.inner_hidden_size or 4 * self.hidden_size

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From the `qformer_args` of a config."""
        known, extra = take_known(cls, data)
        return build(cls, {**known, "extra": extra})

    def to_dict(self) -> dict[str, Any]:
        """As `qformer_args`."""
        fixed = {"layernorm_order": "post", "model_parallel_size": 1, "max_sequence_length": 0}
        flags = self.is_decoder if isinstance(self.is_decoder, bool) else list(self.is_decoder)
        return {**fixed, **fields_to_dict(self), "is_decoder": flags}


def check_qformer(config: VisionLanguageConfig, qformer: QFormerConfig) -> None:
    """Raise ConfigError unless a Q-Former fits the tower before and the language model behind it."""
    if qformer.cross_attn_hidden_size != config.eva_args.hidden_size:
        raise ConfigError(
            f"qformer_args.cross_attn_hidden_size is {qformer.cross_attn_hidden_size}, but the tower (eva_args) is "
            f"{config.eva_args.hidden_size} wide"
        )
    if qformer.proj_size not in (None, config.hidden_size):
        raise ConfigError(
            f"qformer_args.proj_size is {qformer.proj_size}, but the language model is {config.hidden_size} wide"
        )
