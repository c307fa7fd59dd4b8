"""Sizes of CogVideoX.

Sources: github.com/THUDM/CogVideo at v1.0 and e519ece, `sat/configs/*.yaml`; sizes and numbers of frames: its README.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from sat_models.config import FilmConfig
from sat_models.config.base import require_bool, require_divides, require_number_above
from sat_models.errors import ConfigError

MODEL_CLASS = "CogVideoXModel"


@dataclass(frozen=True, kw_only=True)
class CogVideoXConfig(FilmConfig):
    """CogVideoX 1.0 and 1.5, from text and from an image with text. The defaults are those of CogVideoX-5B.

    Attributes:
        positions: "sincos", a vector that is added to each token, or "rotary".
        learned_positions: a learned vector is added, too.
        spatial_scale: what rows and columns are divided by for "sincos".
        ofs_dim: width of the sinusoid of `ofs`, one more number that CogVideoX 1.5 is told with an image; 0: none.
        unused_positions: rows of a table that some checkpoints carry and nothing reads; 0: none.
    """

    model_class: str = MODEL_CLASS
    in_channels: int = 16
    out_channels: int = 16
    time_embed_dim: int = 512
    text_hidden_size: int = 4096
    text_length: int = 226
    guidance: float = 6.0
    latent_scale: float = 0.7
    latent_frames: int = 13
    latent_height: int = 60
    latent_width: int = 90
    usual_frames: int = 49
    fps: int = 8
    positions: Literal["sincos", "rotary"] = "rotary"
    learned_positions: bool = False
    spatial_scale: float = 1.875
    ofs_dim: int = 0
    unused_positions: int = 0

    SAMPLERS: ClassVar[tuple[str, ...]] = ("sat", "sat-ddim", "diffusers", "diffusers-ddim")
    VAE_FILE: ClassVar[str] = "3d-vae.pt"
    PROMPT_LANGUAGES: ClassVar[tuple[str, ...]] = ("en",)
    MAY_BE_0: ClassVar[frozenset[str]] = FilmConfig.MAY_BE_0 | {"ofs_dim", "unused_positions"}

    def __post_init__(self) -> None:
        super().__post_init__()
        require_bool(self, "learned_positions")
        require_number_above(self, 0, "spatial_scale")
        if self.positions not in ("sincos", "rotary"):
            raise ConfigError(f"positions is {self.positions!r}; allowed: sincos, rotary")
        if self.stored_positions and self.patch_frames != 1:
            raise ConfigError(f"patch_frames = {self.patch_frames} goes with rotary positions alone")
        width = "hidden_size" if self.positions == "sincos" else "the width of a head"
        value = self.hidden_size if self.positions == "sincos" else self.hidden_size // self.num_attention_heads
        require_divides(width, value, 16, "time, rows and columns, each in pairs")

    @property
    def stored_positions(self) -> bool:
        """A table with a vector for each token stands in the checkpoint."""
        return self.positions == "sincos" or self.learned_positions

    @property
    def image_scale(self) -> float:
        """What the latents of a given image are multiplied by. CogVideoX 1.5 was trained with those as they are."""
        return self.latent_scale if self.patch_frames == 1 else 1.0

    @property
    def vae_settings(self) -> dict[str, object]:
        """See `LatentModelConfig`: as released. What diffusers makes of it, a division by `latent_scale`, is not what
        the original does."""
        return {"invert_scale_latents": True} if self.takes_image and self.patch_frames > 1 else {}
