"""Sizes of vision towers: parts of a model config."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from sat_models.config.base import (
    build,
    fields_to_dict,
    require_bool,
    require_divides,
    require_number_above,
    require_positive,
    take_known,
)
from sat_models.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class VisionTowerConfig:
    """An EVA2-CLIP tower (`eva_args` in SAT's config). Sizes of the released one: 63 layers, width 1792."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    inner_hidden_size: int
    image_size: tuple[int, int]
    patch_size: int = 14
    in_channels: int = 3
    layernorm_epsilon: float = 1e-6
    row_parallel_linear_final_bias: bool = False
    use_final_layernorm: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    LAYERNORM_ORDER: ClassVar[str] = "post"
    MODEL_CLASS: ClassVar[str] = "EVA2CLIPModel"

    def __post_init__(self) -> None:
        require_positive(
            self, "num_layers", "hidden_size", "num_attention_heads", "inner_hidden_size", "patch_size", "in_channels"
        )
        object.__setattr__(self, "image_size", tuple(self.image_size))
        if len(self.image_size) != 2 or self.image_size[0] != self.image_size[1]:
            raise ConfigError(f"eva_args.image_size must be a square [n, n], got {list(self.image_size)}")
        require_divides("eva_args.image_size", self.image_size[0], self.patch_size, "patch_size")
        require_divides("eva_args.hidden_size", self.hidden_size, self.num_attention_heads, "num_attention_heads")

    @property
    def num_patches(self) -> int:
        """Patches per picture, class token not counted."""
        return (self.image_size[0] // self.patch_size) ** 2

    @property
    def num_positions(self) -> int:
        """Rows of the table of positions, that of the class token included."""
        return self.num_patches + 1

    @property
    def divisible_by(self) -> int:
        """Numbers of processes that divide this share the tower; with others each keeps all of it."""
        return math.gcd(self.num_attention_heads, self.inner_hidden_size)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From the `eva_args` of a SAT config."""
        known, extra = take_known(cls, data)
        config = build(cls, {**known, "extra": extra})
        positions = extra.get("max_sequence_length")
        if positions is not None and positions != config.num_positions:
            raise ConfigError(
                f"eva_args.max_sequence_length is {positions}, but image_size {list(config.image_size)} with "
                f"patch_size {config.patch_size} gives {config.num_positions - 1} patches + 1 class token"
            )
        order = extra.get("layernorm_order", cls.LAYERNORM_ORDER)
        if order != cls.LAYERNORM_ORDER:
            raise ConfigError(f"eva_args.layernorm_order is {order!r}; this tower has {cls.LAYERNORM_ORDER!r}")
        return config

    def to_dict(self) -> dict[str, Any]:
        """As `eva_args`."""
        fixed = {
            "model_class": self.MODEL_CLASS, "vocab_size": 1, "layernorm_order": self.LAYERNORM_ORDER,
            "model_parallel_size": 1, "max_sequence_length": self.num_positions, "pre_len": 1, "post_len": 0,
        }  # fmt: skip
        return {**fixed, **fields_to_dict(self), "image_size": list(self.image_size)}


@dataclass(frozen=True, kw_only=True)
class EVAViTConfig(VisionTowerConfig):
    """EVA ViT-g of BLIP-2 (`eva_args` of VisualGLM and MiniGPT-4). Released: 39 layers, width 1408, 16 heads."""

    row_parallel_linear_final_bias: bool = True

    LAYERNORM_ORDER: ClassVar[str] = "pre"
    MODEL_CLASS: ClassVar[str] = "EVAViT"


@dataclass(frozen=True, kw_only=True)
class EarlyTowerConfig(VisionTowerConfig):
    """A pre-norm tower of which the features of any layer may be taken.

    Attributes:
        feature_layer: whose output is taken, counted from the end: -2 leaves the last layer out.
    """

    row_parallel_linear_final_bias: bool = True
    feature_layer: int = -1

    LAYERNORM_ORDER: ClassVar[str] = "pre"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.feature_layer, bool) or not isinstance(self.feature_layer, int):
            raise ConfigError(f"eva_args.feature_layer must be an integer, got {self.feature_layer!r}")
        if not -self.num_layers <= self.feature_layer <= -1:
            raise ConfigError(
                f"eva_args.feature_layer is {self.feature_layer}; it counts from the end of {self.num_layers} layers, "
                f"so it must be between {-self.num_layers} and -1"
            )

    @property
    def layers_run(self) -> int:
        """Layers whose output is read."""
        return self.num_layers + 1 + self.feature_layer


@dataclass(frozen=True, kw_only=True)
class CLIPTowerConfig(EarlyTowerConfig):
    """CLIP ViT of LLaVA. Released: 24 layers, width 1024, 16 heads, patch 14."""

    layernorm_epsilon: float = 1e-5
    feature_layer: int = -2

    MODEL_CLASS: ClassVar[str] = "CLIPViT"
    LAST_NORM: ClassVar[bool] = True
    """True if checkpoints have the norm behind the last layer, which no forward reads."""


@dataclass(frozen=True, kw_only=True)
class InternViTConfig(EarlyTowerConfig):
    """InternViT. Released: 300M with 24 layers, width 1024, 16 heads; 6B with 45 or 48, 3200, 25.

    Attributes:
        rms_norm: its norms are RMSNorms (6B), else LayerNorms.
        qk_norm: queries and keys are normed over all heads together (6B); no process computes a part of them then.
        qk_epsilon: of those norms; None: that of the others.
        qkv_bias: queries, keys and values have biases (300M).
        table_size: side in pixels of the pictures that the table of positions was made for; None: `image_size`.
    """

    rms_norm: bool = False
    qk_norm: bool = False
    qk_epsilon: float | None = None
    qkv_bias: bool = True
    table_size: int | None = None

    MODEL_CLASS: ClassVar[str] = "InternViT"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_bool(self, "rms_norm", "qk_norm", "qkv_bias")
        if self.qk_epsilon is not None:
            require_number_above(self, 0, "qk_epsilon")
        if self.table_size is not None:
            require_positive(self, "table_size")
            require_divides("eva_args.table_size", self.table_size, self.patch_size, "patch_size")

    @property
    def num_positions(self) -> int:
        """See `VisionTowerConfig`."""
        return ((self.table_size or self.image_size[0]) // self.patch_size) ** 2 + 1

    @property
    def divisible_by(self) -> int:
        """See `VisionTowerConfig`."""
        return 1 if self.qk_norm else super().divisible_by


@dataclass(frozen=True, kw_only=True)
class CrossTowerConfig:
    """The EVA2-CLIP-L tower of CogAgent (`cross_vision_args`).

    The defaults are the released tower; released configs do not name them. `embed_dim` is the size of CLIP's head,
    which is in the checkpoint and not used.
    """

    layers: int = 24
    width: int = 1024
    head_width: int = 64
    mlp_ratio: float = 2.6667
    patch_size: int = 14
    pt_hw_seq_len: int = 16
    in_channels: int = 3
    embed_dim: int = 768
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_positive(
            self, "layers", "width", "head_width", "patch_size", "pt_hw_seq_len", "in_channels", "embed_dim"
        )
        if isinstance(self.mlp_ratio, bool) or not isinstance(self.mlp_ratio, (int, float)) or self.inner_width < 1:
            raise ConfigError(f"cross_vision_args.mlp_ratio must be a positive number, got {self.mlp_ratio!r}")
        require_divides("cross_vision_args.width", self.width, self.head_width, "head_width")
        require_divides("cross_vision_args.head_width", self.head_width, 4, "2-D rotary rotates pairs in each half")

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return self.width // self.head_width

    @property
    def inner_width(self) -> int:
        """Inner width of the SwiGLU."""
        return int(self.width * self.mlp_ratio)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CrossTowerConfig:
        """From the `cross_vision_args` of a config; what is absent takes the released value."""
        known, extra = take_known(cls, data)
        return cls(**known, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """As `cross_vision_args`."""
        return fields_to_dict(self)
