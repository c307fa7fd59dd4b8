"""Sizes of painters whose network is a class of diffusers: a UNet, and a transformer that flows from noise to image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from sat_models.config.base import require_divides, require_number_above, require_positive
from sat_models.config.diffusion import PainterConfig
from sat_models.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ThinConfig(PainterConfig):
    """A painter that runs in diffusers: in one process, with its linears as they are."""

    RUNS_IN: ClassVar[str] = "diffusers"

    def check_model_parallel(self, size: int) -> None:
        """See `ModelConfig`."""
        if size > 1:
            raise ConfigError(
                f"{self.model_class} runs in diffusers, in one process; {size} were started: leave torchrun out"
            )


@dataclass(frozen=True, kw_only=True)
class UNetConfig(ThinConfig):
    """A UNet that predicts the noise, told a text at every level that has attention.

    Attributes:
        model_channels, channel_mult: width, and by what it is multiplied on each level; each level halves the sides.
        num_res_blocks: of each level.
        transformer_depth: layers of each attention of each level; 0 where a level has none.
        num_head_channels: width of a head.
        condition_dim: width of the sinusoid of each number that describes an image.
        cfg_cond_embed_dim: width of the sinusoids of the guidance, of a distilled model, which is told it and needs no
            second forward; None for others.
        partial_num_steps: of a model that enlarges images twofold: so many of the last steps it makes, from the image
            with noise; None for one that draws.
    """

    model_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    transformer_depth: tuple[int, ...]
    num_head_channels: int = 64
    condition_dim: int = 256
    cfg_cond_embed_dim: int | None = None
    partial_num_steps: int | None = None

    SAMPLERS: ClassVar[tuple[str, ...]] = ("sat",)
    USUAL_RELAY: ClassVar[tuple[int, int]] = (24, 12)
    """Steps, and how many of them are made, of a model that enlarges."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channel_mult", "transformer_depth"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        require_positive(
            self, *(n for n in ("cfg_cond_embed_dim", "partial_num_steps") if getattr(self, n) is not None)
        )
        if len(self.channel_mult) != len(self.transformer_depth) or not self.channel_mult:
            raise ConfigError(
                f"channel_mult {list(self.channel_mult)} and transformer_depth {list(self.transformer_depth)} must "
                "have an entry for each level"
            )
        if self.partial_num_steps is not None and self.partial_num_steps > self.steps:
            raise ConfigError(f"partial_num_steps = {self.partial_num_steps} of {self.steps} steps cannot be")
        latents = self.pixels_per_latent * self.latent_multiple
        require_divides("side_multiple", self.side_multiple, latents, "the sides are halved at each level")
        for channels, depth in zip(self.channels, self.transformer_depth, strict=True):
            if depth:
                require_divides("the channels of a level", channels, self.num_head_channels, "num_head_channels")

    @property
    def latent_multiple(self) -> int:
        """Sides of latents are multiples of it: each level but the first halves them."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each level."""
        return tuple(self.model_channels * times for times in self.channel_mult)

    @property
    def enlarges(self) -> bool:
        """True for a model that enlarges images, False for one that draws."""
        return self.partial_num_steps is not None

    def as_enlarger(self) -> Self:
        """The same as one that enlarges: weights do not tell. Steps are the usual ones, and sides twice as long."""
        if self.enlarges:
            return self
        steps, partial = self.USUAL_RELAY
        sides = {name: 2 * getattr(self, name) for name in ("least_side", "most_side", "side_multiple")}
        return replace(self, steps=steps, partial_num_steps=partial, most_pixels=4 * self.most_pixels, **sides)


@dataclass(frozen=True, kw_only=True)
class FlowConfig(ThinConfig):
    """A transformer that predicts where noise flows to, straight.

    Attributes:
        num_layers, num_attention_heads, head_dim, patch_size, time_embed_dim, condition_dim: as diffusers' class.
        pos_max, sample_size: the same, of tables and usual sizes.
        rope_axes: places that its rotary tables are made for, down and across.
        base_shift, max_shift, base_tokens: how much longer a large image is left in noise: by
            base_shift + max_shift · √(tokens / base_tokens).
    """

    num_layers: int
    num_attention_heads: int
    head_dim: int
    patch_size: int = 2
    time_embed_dim: int
    condition_dim: int = 256
    pos_max: int = 128
    sample_size: int = 128
    rope_axes: tuple[int, int] = (256, 256)
    base_shift: float = 0.25
    max_shift: float = 0.75
    base_tokens: int = 256

    SAMPLERS: ClassVar[tuple[str, ...]] = ("diffusers",)
    TEXT_FOLDER: ClassVar[str] = "glm-4-9b-hf"
    SAT_FORM: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rope_axes", tuple(self.rope_axes))
        require_number_above(self, 0, "base_shift", "max_shift")
        token = self.pixels_per_latent * self.patch_size
        require_divides("side_multiple", self.side_multiple, token, "the pixels on the side of a token")

    @property
    def latent_multiple(self) -> int:
        """Sides of latents are multiples of it."""
        return self.patch_size
