"""Sizes of language models, and what a config of a model with a picture has besides."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from mixins.heads import HeadLayout
from sat_models.config.base import (
    require_bool,
    require_divides,
    require_number_above,
    require_positive,
)
from sat_models.config.images import ImageForm, SquareImages
from sat_models.config.model import ModelConfig
from sat_models.config.sequence import COGVLM_FORM, SequenceForm
from sat_models.config.towers import VisionTowerConfig
from sat_models.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LanguageConfig(ModelConfig):
    """The config of a language model of the zoo. `layernorm_epsilon` is absent in released configs and is 1e-5 there.

    Attributes:
        eos_token_id: what ends an answer; one id, or several, of which training takes the first.
        text_processor_version: prompt style that the weights were trained with; None: the model's usual one.
        system_message: what stands in the prompt style's place for a system text; None: the style's own.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    inner_hidden_size: int
    vocab_size: int
    max_sequence_length: int
    layernorm_epsilon: float = 1e-5
    use_bias: bool
    layernorm_order: str
    bos_token_id: int = 1
    eos_token_id: int | tuple[int, ...] = 2
    pad_token_id: int = 0
    tokenizer_type: str = "vicuna-7b-v1.5"
    text_processor_version: str | None = None
    system_message: str | None = None

    qkv_bias: ClassVar[bool] = False
    _REQUIRED_VALUES: ClassVar[dict[str, Any]] = {}
    ROTARY_DIVISOR: ClassVar[int] = 2
    """The number that the width of a head must be divisible by."""
    TOKENIZER_FILES: ClassVar[tuple[str, ...]] = ("tokenizer.model",)
    RELEASED_TOKENIZER: ClassVar[tuple[int, str]] = (32000, "lmsys/vicuna-7b-v1.5")
    """Where the tokenizer of a released model with so large a vocabulary is to be had."""
    DEFAULT_VERSION: ClassVar[str] = "base"
    """Prompt style of a checkpoint that is no named model and says nothing."""

    def __post_init__(self) -> None:
        require_positive(
            self, "num_layers", "hidden_size", "num_attention_heads", "inner_hidden_size", "vocab_size",
            "max_sequence_length",
        )  # fmt: skip
        self._check_heads()
        if not isinstance(self.eos_token_id, int):
            object.__setattr__(self, "eos_token_id", _several_ids("eos_token_id", self.eos_token_id))
        for name, value in self._REQUIRED_VALUES.items():
            if getattr(self, name) != value:
                raise ConfigError(
                    f"{name} = {getattr(self, name)!r} is not supported for {self.model_class}: {value!r}"
                )

    def _check_heads(self) -> None:
        require_divides("hidden_size", self.hidden_size, self.num_attention_heads, "num_attention_heads")
        require_divides("head size", self.heads.head_dim, self.ROTARY_DIVISOR, "rotary rotates pairs")

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ids that end an answer."""
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else self.eos_token_id

    @property
    def heads(self) -> HeadLayout:
        """How a row of queries, keys and values is cut, and how heads turn with their position."""
        return HeadLayout.even(self.num_attention_heads, self.hidden_size // self.num_attention_heads)

    @property
    def sequence_form(self) -> SequenceForm:
        """How the model wants its sequence."""
        return COGVLM_FORM

    def _split_sizes(self) -> dict[str, int]:
        return {
            "num_attention_heads": self.num_attention_heads,
            "inner_hidden_size": self.inner_hidden_size,
        }


def _several_ids(name: str, given: Any) -> tuple[int, ...]:
    """A list of token ids as a tuple. Raises ConfigError."""
    ids = tuple(given) if isinstance(given, (list, tuple)) else ()
    if not ids or not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
        raise ConfigError(f"{name} is {given!r:.80}; it must be a token id, or a list of at least one")
    return ids


@dataclass(frozen=True, kw_only=True)
class LLaMAConfig(LanguageConfig):
    """A LLaMA-shaped language model. Read `heads` for what follows from the sizes where a file says nothing.

    Attributes:
        num_kv_heads: heads of keys and values; None: as many as of queries.
        head_dim: width of a head; None: hidden_size / num_attention_heads.
        rope_theta: base of the rotary frequencies.
        rotary_dim: how much of a head turns, from its first number on; None: all of it.
        rotary_interleaved: whether neighbours turn together, or the halves of what turns.
        qkv_bias: whether queries, keys and values have biases.
    """

    model_class: str = "LLaMAModel"
    use_bias: bool = False
    layernorm_order: str = "pre"
    num_kv_heads: int | None = None
    head_dim: int | None = None
    rope_theta: float = 10000.0
    rotary_dim: int | None = None
    rotary_interleaved: bool = False
    qkv_bias: bool = False

    _REQUIRED_VALUES: ClassVar[dict[str, Any]] = {"use_bias": False, "layernorm_order": "pre"}
    _LATER: ClassVar[tuple[str, ...]] = ("rope_theta", "rotary_interleaved", "qkv_bias")
    """Keys that are written only where they say something: files were made before there were these."""

    def _check_heads(self) -> None:
        given = [name for name in ("num_kv_heads", "head_dim", "rotary_dim") if getattr(self, name) is not None]
        require_positive(self, *given)
        require_number_above(self, 0, "rope_theta")
        require_bool(self, *(f.name for f in fields(self) if f.name in self._LATER and isinstance(f.default, bool)))
        if self.head_dim is None:
            require_divides("hidden_size", self.hidden_size, self.num_attention_heads, "num_attention_heads")
        heads = self.heads
        require_divides("num_attention_heads", heads.num_heads, heads.num_kv_heads, "num_kv_heads: groups of a size")
        require_divides("what turns of a head", heads.rotary_dim, self.ROTARY_DIVISOR, "rotary rotates pairs")
        if heads.rotary_dim > heads.head_dim:
            raise ConfigError(f"rotary_dim = {heads.rotary_dim} is more than a head has, {heads.head_dim}")

    @property
    def heads(self) -> HeadLayout:
        """See `LanguageConfig`."""
        head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        return HeadLayout(
            num_heads=self.num_attention_heads, num_kv_heads=self.num_kv_heads or self.num_attention_heads,
            head_dim=head_dim, rope_theta=float(self.rope_theta), rotary_dim=self.rotary_dim or head_dim,
            interleaved=self.rotary_interleaved,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As the content of a `model_config.json`."""
        defaults = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in super().to_dict().items() if k not in self._LATER or v != defaults[k]}


@dataclass(frozen=True, kw_only=True)
class VisionLanguageConfig(LanguageConfig):
    """The part of a config that a model with pictures has besides its language model's.

    Attributes:
        image_length: tokens that a picture takes in the sequence, begin and end vectors not counted.
        eva_args: the vision tower.
    """

    image_length: int
    eva_args: VisionTowerConfig

    TOWER: ClassVar[type[VisionTowerConfig]] = VisionTowerConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.eva_args, dict):
            object.__setattr__(self, "eva_args", self.TOWER.from_dict(self.eva_args))
        self._check_image_length()

    def _check_image_length(self) -> None:
        if self.image_length != self.eva_args.num_patches:
            raise ConfigError(
                f"image_length is {self.image_length}, but the tower makes {self.eva_args.num_patches} image tokens "
                f"from {self.eva_args.image_size[0]} px with patch {self.eva_args.patch_size}"
            )

    @property
    def image_size(self) -> int:
        """Side of the square input picture in pixels."""
        return self.eva_args.image_size[0]

    @property
    def images(self) -> ImageForm:
        """How the model takes images."""
        return SquareImages(side=self.image_size, length=self.image_length)

    def to_dict(self) -> dict[str, Any]:
        """As the content of a `model_config.json`."""
        return {**super().to_dict(), "eva_args": self.eva_args.to_dict()}
