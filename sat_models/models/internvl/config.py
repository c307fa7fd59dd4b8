"""Sizes of InternVL."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from sat_models.config import ImageProcessing, InternViTConfig
from sat_models.config.base import require_bool, require_positive
from sat_models.config.language import LLaMAConfig, VisionLanguageConfig
from sat_models.config.sequence import PLAIN_FORM, SequenceForm
from sat_models.errors import ConfigError
from sat_models.models.internvl.images import IMAGENET_MEAN, IMAGENET_STD, TiledImages
from sat_models.models.internvl.languages import LANGUAGES

PIXEL_SHUFFLES = ("v1", "v2")
"""Tokens of a tile column by column (1.1, 1.2), row by row (1.5 on)."""


@dataclass(frozen=True, kw_only=True)
class InternVLConfig(LLaMAConfig, VisionLanguageConfig):
    """InternVL: a LLaMA, InternLM2 or Qwen2 that reads projected InternViT features (`eva_args`) as tokens.

    Attributes:
        image_length: tokens of a tile.
        language: which language model, a key of `LANGUAGES`: under which names its weights go out.
        joined: patches on either side of the square that makes one token (1 / `downsample_ratio`).
        pixel_shuffle: one of `PIXEL_SHUFFLES` (`ps_version`).
        dynamic_images: images are cut into tiles (`dynamic_image_size`).
        least_tiles, most_tiles: of one image then, the overview not counted (`min_dynamic_patch`,
            `max_dynamic_patch`).
        overview: the whole image follows its tiles (`use_thumbnail`).
        square_padding: images that are not cut are padded to a square with the mean colour (`pad2square`).
        image_token_id: token id that stands where an image goes; its embedding is overwritten. None: not known,
            because no tokenizer lay beside the weights.
    """

    model_class: str = "InternVLModel"
    eva_args: InternViTConfig
    language: str = "llama"
    joined: int = 2
    pixel_shuffle: str = "v2"
    dynamic_images: bool = True
    least_tiles: int = 1
    most_tiles: int = 12
    overview: bool = True
    square_padding: bool = False
    image_token_id: int | None = None
    tokenizer_type: str = "OpenGVLab/InternVL"

    TOWER: ClassVar[type[InternViTConfig]] = InternViTConfig
    TOKENIZER_FILES: ClassVar[tuple[str, ...]] = ("tokenizer.model", "tokenizer.json")
    DEFAULT_VERSION: ClassVar[str] = "internvl2_5"

    def __post_init__(self) -> None:
        require_positive(self, "joined", "least_tiles", "most_tiles")
        require_bool(self, "dynamic_images", "overview", "square_padding")
        super().__post_init__()
        for name, allowed in (("language", tuple(LANGUAGES)), ("pixel_shuffle", PIXEL_SHUFFLES)):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.least_tiles > self.most_tiles:
            raise ConfigError(f"least_tiles = {self.least_tiles} is more than most_tiles = {self.most_tiles}")
        if self.image_token_id is not None and not 0 <= self.image_token_id < self.vocab_size:
            raise ConfigError(
                f"image_token_id = {self.image_token_id} is outside of the vocabulary of {self.vocab_size} tokens"
            )

    def _check_image_length(self) -> None:
        side, joined = self.eva_args.image_size[0] // self.eva_args.patch_size, self.joined
        if side % joined or self.image_length != (side // joined) ** 2:
            raise ConfigError(
                f"image_length is {self.image_length}, but a token is made of {joined} x {joined} of the tower's "
                f"{side} x {side} patches: that is {side / joined:g} x {side / joined:g}"
            )

    @property
    def sequence_form(self) -> SequenceForm:
        """A plain sequence; boxes are of 1000, in tags."""
        return replace(PLAIN_FORM, slot_id=self.image_token_id or 0, several_images=True, boxes="thousand in tags")

    @property
    def images(self) -> TiledImages:
        """Squares of ImageNet's colours, cut into tiles where the config says so."""
        fit = "pad" if self.square_padding and not self.dynamic_images else "stretch"
        return TiledImages(
            side=self.image_size, length=self.image_length, overview=self.overview,
            least_tiles=self.least_tiles if self.dynamic_images else 1,
            most_tiles=self.most_tiles if self.dynamic_images else 1,
            processing=ImageProcessing(fit=fit, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        )  # fmt: skip
