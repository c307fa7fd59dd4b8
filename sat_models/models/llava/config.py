"""Sizes of LLaVA."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from sat_models.config.images import ImageProcessing, SquareImages
from sat_models.config.language import LLaMAConfig, VisionLanguageConfig
from sat_models.config.sequence import PLAIN_FORM, SequenceForm
from sat_models.config.towers import CLIPTowerConfig
from sat_models.errors import ConfigError

PROJECTORS = ("linear", "mlp2x_gelu")
"""Of LLaVA 1.0 and of 1.5, as the original configs name them (`mm_projector_type`)."""


@dataclass(frozen=True, kw_only=True)
class LLaVAConfig(LLaMAConfig, VisionLanguageConfig):
    """LLaVA: a plain LLaMA that reads projected CLIP features (`eva_args`) as tokens.

    Attributes:
        projector: "linear" (1.0) or "mlp2x_gelu" (1.5).
        square_padding: pictures are padded to a square with CLIP's mean colour (1.5), else cut to one (1.0).
        image_token_id: token id that stands where a picture goes; its embedding is overwritten.
        image_start_id, image_end_id: tokens around a picture (`<im_start>`, `<im_end>` of 1.0); None without.
    """

    model_class: str = "LLaVAModel"
    eva_args: CLIPTowerConfig
    projector: str = "mlp2x_gelu"
    square_padding: bool = True
    image_token_id: int = 0
    image_start_id: int | None = None
    image_end_id: int | None = None

    TOWER: ClassVar[type[CLIPTowerConfig]] = CLIPTowerConfig
    DEFAULT_VERSION: ClassVar[str] = "llava_v1"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projector not in PROJECTORS:
            raise ConfigError(f"projector is {self.projector!r}; allowed: {', '.join(PROJECTORS)}")
        for name in ("image_token_id", "image_start_id", "image_end_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < self.vocab_size:
                raise ConfigError(f"{name} = {token} is outside of the vocabulary of {self.vocab_size} tokens")

    @property
    def sequence_form(self) -> SequenceForm:
        """A plain sequence; boxes are fractions, of the padded square in 1.5."""
        boxes = "unit of square" if self.square_padding else "unit"
        return dataclasses.replace(PLAIN_FORM, slot_id=self.image_token_id, boxes=boxes)

    @property
    def images(self) -> SquareImages:
        """Padded (1.5) or cropped squares, with tokens around them in 1.0."""
        before, after = (() if token is None else (token,) for token in (self.image_start_id, self.image_end_id))
        return SquareImages(
            side=self.image_size, length=self.image_length, before=before, after=after,
            processing=ImageProcessing(fit="pad" if self.square_padding else "crop"),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """As the content of a `model_config.json`."""
        return {**super().to_dict(), "projector": self.projector}
