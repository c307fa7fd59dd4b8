"""Typed model configs, read from and written to SAT's `model_config.json`.

Sizes come from here and nowhere else. Keys that are not ours are kept and written back, so that nothing of a released
config is lost.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sat_models.errors import ConfigError


def _require_positive(owner: Any, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ConfigError(f"{type(owner).__name__}.{name} must be a positive integer, got {value!r}")


def _require_divides(what: str, whole: int, parts: int, why: str) -> None:
    if whole % parts:
        raise ConfigError(f"{what} = {whole} is not divisible by {parts} ({why})")


def _take_known(cls: type, data: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    names = {f.name for f in dataclasses.fields(cls) if f.init and f.name != "extra"}
    return {k: v for k, v in data.items() if k in names}, {k: v for k, v in data.items() if k not in names}


def _build(cls: type, known: dict[str, Any]) -> Any:
    missing = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in known
    ]
    if missing:
        raise ConfigError(f"{cls.__name__} lacks the key(s) {', '.join(missing)}; a model config must carry its sizes")
    return cls(**known)


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

    def __post_init__(self) -> None:
        _require_positive(
            self, "num_layers", "hidden_size", "num_attention_heads", "inner_hidden_size", "patch_size", "in_channels"
        )
        object.__setattr__(self, "image_size", tuple(self.image_size))
        if len(self.image_size) != 2 or self.image_size[0] != self.image_size[1]:
            raise ConfigError(f"eva_args.image_size must be a square [n, n], got {list(self.image_size)}")
        _require_divides("eva_args.image_size", self.image_size[0], self.patch_size, "patch_size")
        _require_divides("eva_args.hidden_size", self.hidden_size, self.num_attention_heads, "num_attention_heads")

    @property
    def num_patches(self) -> int:
        """Image tokens per picture, class token not counted."""
        return (self.image_size[0] // self.patch_size) ** 2

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> VisionTowerConfig:
        """From the `eva_args` of a SAT config."""
        known, extra = _take_known(cls, data)
        positions = extra.get("max_sequence_length")
        config = _build(cls, {**known, "extra": extra})
        if positions is not None and positions != config.num_patches + 1:
            raise ConfigError(
                f"eva_args.max_sequence_length is {positions}, but image_size {list(config.image_size)} with "
                f"patch_size {config.patch_size} gives {config.num_patches} patches + 1 class token"
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """As `eva_args`."""
        fixed = {
            "model_class": "EVA2CLIPModel", "vocab_size": 1, "layernorm_order": "post", "model_parallel_size": 1,
            "max_sequence_length": self.num_patches + 1, "pre_len": 1, "post_len": 0,
        }  # fmt: skip
        return {**fixed, **_fields_to_dict(self), "image_size": list(self.image_size)}


@dataclass(frozen=True, kw_only=True)
class LLaMAConfig:
    """A LLaMA-shaped language model. `layernorm_epsilon` is absent in released configs and is 1e-5 there."""

    model_class: str = "LLaMAModel"
    num_layers: int
    hidden_size: int
    num_attention_heads: int
    inner_hidden_size: int
    vocab_size: int
    max_sequence_length: int
    layernorm_epsilon: float = 1e-5
    use_bias: bool = False
    layernorm_order: str = "pre"
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 0
    tokenizer_type: str = "vicuna-7b-v1.5"
    text_processor_version: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    _REQUIRED_VALUES: ClassVar[dict[str, Any]] = {"use_bias": False, "layernorm_order": "pre"}

    def __post_init__(self) -> None:
        _require_positive(
            self, "num_layers", "hidden_size", "num_attention_heads", "inner_hidden_size", "vocab_size",
            "max_sequence_length",
        )  # fmt: skip
        _require_divides("hidden_size", self.hidden_size, self.num_attention_heads, "num_attention_heads")
        _require_divides("head size", self.head_dim, 2, "rotary rotates pairs")
        for name, value in self._REQUIRED_VALUES.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"{name} = {getattr(self, name)!r} is not supported for {self.model_class}: {value!r}"
                )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LLaMAConfig:
        """From the content of a `model_config.json`."""
        known, extra = _take_known(cls, data)
        extra.pop("model_parallel_size", None)  # a property of a run, not of the model
        return _build(cls, {**known, "extra": extra})

    def to_dict(self) -> dict[str, Any]:
        """As the content of a `model_config.json`."""
        return {"model_parallel_size": 1, **_fields_to_dict(self)}

    def check_model_parallel(self, size: int) -> None:
        """Raise ConfigError, naming the value, if the model cannot be split over `size` processes."""
        for what, value in self._split_sizes().items():
            if value % size:
                raise ConfigError(
                    f"model-parallel size {size} does not divide {what} = {value}. Start as many processes as divide "
                    f"all of: {', '.join(f'{k} {v}' for k, v in self._split_sizes().items())}."
                )

    def _split_sizes(self) -> dict[str, int]:
        return {
            "num_attention_heads": self.num_attention_heads,
            "inner_hidden_size": self.inner_hidden_size,
            "vocab_size": self.vocab_size,
        }


@dataclass(frozen=True, kw_only=True)
class CogVLMConfig(LLaMAConfig):
    """CogVLM: a LLaMA with visual experts, and a vision tower in `eva_args`."""

    model_class: str = "CogVLMModel"
    image_length: int
    eva_args: VisionTowerConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.eva_args, dict):
            object.__setattr__(self, "eva_args", VisionTowerConfig.from_dict(self.eva_args))
        if self.image_length != self.eva_args.num_patches:
            raise ConfigError(
                f"image_length is {self.image_length}, but the tower makes {self.eva_args.num_patches} image tokens "
                f"from {self.eva_args.image_size[0]} px with patch {self.eva_args.patch_size}"
            )

    @property
    def image_size(self) -> int:
        """Side of the square input picture in pixels."""
        return self.eva_args.image_size[0]

    def to_dict(self) -> dict[str, Any]:
        """As the content of a `model_config.json`."""
        return {**super().to_dict(), "eva_args": self.eva_args.to_dict()}

    def _split_sizes(self) -> dict[str, int]:
        return {
            **super()._split_sizes(),
            "eva_args.num_attention_heads": self.eva_args.num_attention_heads,
            "eva_args.inner_hidden_size": self.eva_args.inner_hidden_size,
        }


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
        _require_positive(
            self, "layers", "width", "head_width", "patch_size", "pt_hw_seq_len", "in_channels", "embed_dim"
        )
        if isinstance(self.mlp_ratio, bool) or not isinstance(self.mlp_ratio, (int, float)) or self.inner_width < 1:
            raise ConfigError(f"cross_vision_args.mlp_ratio must be a positive number, got {self.mlp_ratio!r}")
        _require_divides("cross_vision_args.width", self.width, self.head_width, "head_width")
        _require_divides("cross_vision_args.head_width", self.head_width, 4, "2-D rotary rotates pairs in each half")

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
        known, extra = _take_known(cls, data)
        return cls(**known, extra=extra)

    def to_dict(self) -> dict[str, Any]:
        """As `cross_vision_args`."""
        return _fields_to_dict(self)


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
        _require_positive(self, "cross_image_pix", "cross_attn_hidden_size", "cross_hidden_size_per_attention_head")
        tower = self.cross_vision_args
        _require_divides("cross_image_pix", self.cross_image_pix, tower.patch_size, "cross_vision_args.patch_size")
        if self.cross_attn_hidden_size != tower.width:
            raise ConfigError(
                f"cross_attn_hidden_size is {self.cross_attn_hidden_size}, but the high-resolution tower "
                f"(cross_vision_args) is {tower.width} wide"
            )
        self._check_is_decoder()

    def _check_is_decoder(self) -> None:
        given = self.is_decoder
        flags = (given,) * self.num_layers if isinstance(given, bool) else given
        if not isinstance(flags, (list, tuple)) or not all(isinstance(flag, bool) for flag in flags):
            raise ConfigError(f"is_decoder must be true or a list of true and false, got {given!r:.80}")
        if len(flags) != self.num_layers or not any(flags):
            raise ConfigError(
                f"is_decoder must say for each of the {self.num_layers} layers whether it has cross-attention, and for "
                f"at least one that it has; got {given!r:.80}"
            )
        if not isinstance(given, bool):
            object.__setattr__(self, "is_decoder", tuple(given))

    @property
    def num_cross_patches(self) -> int:
        """High-resolution features per picture."""
        return (self.cross_image_pix // self.cross_vision_args.patch_size) ** 2

    def cross_attention_args(self) -> dict[str, Any]:
        """What SAT's `BaseTransformer` needs to make the cross-attention."""
        return {
            "is_decoder": self.is_decoder if isinstance(self.is_decoder, bool) else list(self.is_decoder),
            "cross_attn_hidden_size": self.cross_attn_hidden_size,
            "cross_hidden_size_per_attention_head": self.cross_hidden_size_per_attention_head,
        }

    def to_dict(self) -> dict[str, Any]:
        """As the content of a `model_config.json`."""
        own = {**self.cross_attention_args(), "cross_vision_args": self.cross_vision_args.to_dict()}
        return {**super().to_dict(), **own}


def _fields_to_dict(config: Any) -> dict[str, Any]:
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "extra"}
    return {**config.extra, **{k: v for k, v in own.items() if v is not None}}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ConfigError with the path and the place of the fault."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a JSON object, found {type(data).__name__}")
    return data
