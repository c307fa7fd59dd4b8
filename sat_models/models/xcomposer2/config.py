"""Sizes of InternLM-XComposer2."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from sat_models.config.base import require_divides, require_number_above, require_positive
from sat_models.config.images import ImageForm, SquareImages
from sat_models.config.language import LLaMAConfig, VisionLanguageConfig
from sat_models.config.sequence import PLAIN_FORM, SequenceForm
from sat_models.config.towers import CLIPTowerConfig
from sat_models.errors import ConfigError
from sat_models.models.xcomposer2.tiles import TiledImages

JOINED = 2
"""Patches, on either side, that are joined to one token in the tiled forms."""
MOST_TILES = {"4khd": (25, 25), "2d5": (24, 6)}
"""The tiled forms: most tiles of one image, and of each of several."""


@dataclass(frozen=True, kw_only=True)
class XComposer2TowerConfig(CLIPTowerConfig):
    """CLIP ViT-L/14, read behind its last layer; checkpoints have no norm there."""

    feature_layer: int = -1

    LAST_NORM: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class XComposer2Config(LLaMAConfig, VisionLanguageConfig):
    """InternLM2 whose image tokens take a low-rank product in every linear besides.

    Attributes:
        plora_rank: of these products.
        plora_qkv_rank: of those to queries, keys and values; None: the same.
        plora_qkv_scale: factor of those.
        tiling: None: an image is stretched to a square; "4khd" or "2d5": it is cut into tiles, as those releases do.
    """

    model_class: str = "XComposer2Model"
    eva_args: XComposer2TowerConfig
    rope_theta: float = 1e6
    eos_token_id: int | tuple[int, ...] = (92542, 2)
    pad_token_id: int = 2
    tokenizer_type: str = "internlm/internlm-xcomposer2-vl-7b"
    plora_rank: int = 256
    plora_qkv_rank: int | None = None
    plora_qkv_scale: float = 1.0
    tiling: str | None = None

    TOWER: ClassVar[type[CLIPTowerConfig]] = XComposer2TowerConfig
    RELEASED_TOKENIZER: ClassVar[tuple[int, str]] = (92544, "internlm/internlm-xcomposer2-vl-7b")
    DEFAULT_VERSION: ClassVar[str] = "xcomposer2"
    _LATER: ClassVar[tuple[str, ...]] = (*LLaMAConfig._LATER, "plora_qkv_rank", "plora_qkv_scale", "tiling")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "plora_rank", *(["plora_qkv_rank"] if self.plora_qkv_rank is not None else []))
        require_number_above(self, 0, "plora_qkv_scale")

    def _check_image_length(self) -> None:
        if self.tiling is None:
            super()._check_image_length()
            return
        if self.tiling not in MOST_TILES:
            raise ConfigError(f"tiling is {self.tiling!r}; allowed: {', '.join(MOST_TILES)}, or none")
        patches = self.image_size // self.eva_args.patch_size
        require_divides("patches on a side of a tile", patches, JOINED, "neighbours are joined to one token")
        if self.image_length != (least := self.images.plan().length):
            raise ConfigError(f"image_length is {self.image_length}, but an image of one tile takes {least} tokens")

    @property
    def sequence_form(self) -> SequenceForm:
        """A plain sequence, whose begin tokens the prompt styles set; the end token stands in the slots."""
        return replace(
            PLAIN_FORM, begin=False, slot_id=self.eos_token_ids[-1], several_images=True, penalises_text_prompts=True
        )

    @property
    def images(self) -> ImageForm:
        """Squares, or tiles."""
        if self.tiling is None:
            return SquareImages(side=self.image_size, length=self.image_length)
        most, of_several = MOST_TILES[self.tiling]
        return TiledImages(
            side=self.image_size, grid=self.image_size // self.eva_args.patch_size // JOINED,
            enlarges=self.tiling == "4khd", most_tiles=most, most_tiles_of_several=of_several,
        )  # fmt: skip
