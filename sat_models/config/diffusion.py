"""Sizes of models that make images or films out of noise, and what a sampler has to know of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from mixins.heads import HeadLayout
from sat_models.config.base import require_divides, require_number_above, require_positive
from sat_models.config.model import ModelConfig
from sat_models.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LatentModelConfig(ModelConfig):
    """A network that turns noise into latents, told by a text.

    Attributes:
        in_channels: of what it is given; mostly those of the latents.
        text_hidden_size, text_length: of what a text encoder gives; the length is that of training.
        guidance, steps: the usual ones.
        latent_scale: what an image's latents are multiplied by before noise comes to them.
        pixels_per_latent: on either side.
        text_model: where the text encoder of the released weights is to be had.
    """

    in_channels: int
    text_hidden_size: int
    text_length: int
    guidance: float = 5.0
    steps: int = 50
    latent_scale: float = 1.0
    pixels_per_latent: int = 8
    text_model: str = "google/t5-v1_1-xxl"

    SAT_PREFIX: ClassVar[str] = "model.diffusion_model."
    SAMPLERS: ClassVar[tuple[str, ...]] = ("sat", "diffusers")
    """Names of samplers; the first is the usual one."""
    TEXT_FOLDER: ClassVar[str] = "t5-v1_1-xxl"
    """Where the text encoder may lie beside the weights, and in SAT_HOME for all painters that have it."""
    VAE_FILE: ClassVar[str] = "imagekl_ch16.pt"
    """The autoencoder of the release."""
    VAE_FOLDERS: ClassVar[tuple[str, ...]] = ("vae",)
    """Where it may lie; those behind the first also in SAT_HOME, for several models."""
    MAY_BE_0: ClassVar[frozenset[str]] = frozenset()
    """The whole numbers among the sizes that need not be positive."""

    def __post_init__(self) -> None:
        require_positive(self, *(f.name for f in fields(self) if f.type == "int" and f.name not in self.MAY_BE_0))
        require_number_above(self, 0, "latent_scale", "guidance")

    @property
    def heads(self) -> HeadLayout | None:
        """How a row of queries, keys and values is cut; None where nothing asks."""
        return None

    @property
    def latent_channels(self) -> int:
        """Of the latents that it makes."""
        return self.in_channels

    @property
    def least_latents(self) -> tuple[int, ...]:
        """Shape of the latents of the smallest result that it makes."""
        raise NotImplementedError

    @property
    def vae_settings(self) -> dict[str, object]:
        """What diffusers' pipeline wants to find in the config of the autoencoder besides its sizes."""
        return {}


@dataclass(frozen=True, kw_only=True)
class PainterConfig(LatentModelConfig):
    """One that makes images.

    Attributes:
        least_side, most_side, most_pixels, side_multiple: the sizes in pixels that it was trained on.
    """

    least_side: int
    most_side: int
    most_pixels: int
    side_multiple: int = 32

    TASK: ClassVar[str] = "drawing"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_divides("side_multiple", self.side_multiple, self.pixels_per_latent, "the pixels of a latent")

    @property
    def usual_size(self) -> tuple[int, int]:
        """Width and height in pixels where nobody names any: the square of half the longest side."""
        side = self.most_side // 2 // self.side_multiple * self.side_multiple
        return max(side, self.least_side), max(side, self.least_side)

    def check_size(self, width: int, height: int) -> None:
        """Raise InputError for an image that the model was not made for; both in pixels."""
        rule = (
            f"width and height are multiples of {self.side_multiple} from {self.least_side} to {self.most_side}, and "
            f"their product at most {self.most_pixels}"
        )
        sides = (width, height)
        if not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
            raise InputError(f"the size is {sides!r:.60}; it must be two whole numbers, width and height: {rule}")
        if any(side % self.side_multiple or not self.least_side <= side <= self.most_side for side in sides):
            near = "x".join(str(self._near(side)) for side in sides)
            raise InputError(f"the size {width}x{height} cannot be drawn: {rule}. The nearest sides are {near}.")
        if width * height > self.most_pixels:
            raise InputError(f"the size {width}x{height} is {width * height} pixels: {rule}")

    def _near(self, side: int) -> int:
        nearest = round(side / self.side_multiple) * self.side_multiple
        return min(max(nearest, self.least_side), self.most_side)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of an image of so many pixels."""
        return self.latent_channels, height // self.pixels_per_latent, width // self.pixels_per_latent

    @property
    def least_latents(self) -> tuple[int, ...]:
        """See `LatentModelConfig`."""
        return self.latent_shape(self.least_side, self.least_side)


def limits(pos_max: int, token: int = 16) -> dict[str, int]:
    """The rule of image sizes for a table of positions, in the proportions of CogView3-Plus (512 to 2048, 2^21 pixels).

    Args:
        pos_max: side of the table.
        token: pixels on the side of a token.
    """
    side = pos_max * token
    return {"least_side": max(side // 4, 1), "most_side": side, "most_pixels": side**2 // 2}


@dataclass(frozen=True, kw_only=True)
class LatentTransformerConfig(LatentModelConfig):
    """One that is a transformer of SAT's.

    Attributes:
        patch_size: the side of what is one token, in latents.
        time_embed_dim: width of the vector that stands for the time.
        snr_shift: what the signal-to-noise ratio of the schedule was divided by.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    patch_size: int = 2
    time_embed_dim: int
    snr_shift: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number_above(self, 0, "snr_shift")
        require_divides("hidden_size", self.hidden_size, self.num_attention_heads, "num_attention_heads")

    @property
    def heads(self) -> HeadLayout:
        """How a row of queries, keys and values is cut."""
        return HeadLayout.even(self.num_attention_heads, self.hidden_size // self.num_attention_heads)

    @property
    def inner_hidden_size(self) -> int:
        """Of the MLPs: SAT's own."""
        return 4 * self.hidden_size

    def _split_sizes(self) -> dict[str, int]:
        return {"num_attention_heads": self.num_attention_heads, "inner_hidden_size": self.inner_hidden_size}


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(LatentTransformerConfig, PainterConfig):
    """A transformer of SAT's that makes images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        token = self.pixels_per_latent * self.patch_size
        require_divides("side_multiple", self.side_multiple, token, "the pixels on the side of a token")
