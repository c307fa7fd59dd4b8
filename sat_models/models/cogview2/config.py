"""Sizes of CogView2's three models.

Source: github.com/THUDM/CogView2 at d92dbad; CogView2, arXiv 2204.14217.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mixins.grid_window import Window
from sat_models.config.base import require_positive
from sat_models.config.image_tokens import ImageTokenConfig
from sat_models.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CogLMConfig(ImageTokenConfig):
    """CogLM: an image of 20 x 20 codes, row by row, from its text.

    Attributes:
        image_start: the position of `<start_of_image>`, which ends the text; what stands before it is seen by all.
        image_cells: codes of an image.
    """

    model_class: str = "CogLMModel"
    image_start: int = 512
    image_cells: int = 400

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "image_start", "image_cells")
        if math.isqrt(self.image_cells) ** 2 != self.image_cells:
            raise ConfigError(f"image_cells is {self.image_cells}, which is no square")

    @property
    def usual_size(self) -> tuple[int, int]:
        """Width and height of what it makes with its companions."""
        return (self.sides(self.image_cells)[0],) * 2


@dataclass(frozen=True, kw_only=True)
class SuperResolutionConfig(ImageTokenConfig):
    """What both ways to a larger image share.

    Attributes:
        layout: where each part of the sequence ends: text, (small image,) large image.
        kernel_size: columns of a window of the large image; it has one row less than twice as many.
        new_sequence_length: positions in all, those of the mixin's table included.
    """

    layout: tuple[int, ...]
    kernel_size: int = 5
    new_sequence_length: int = 4624

    PARTS = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", tuple(self.layout))
        super().__post_init__()
        require_positive(self, "kernel_size", "new_sequence_length")
        ends = (0, *self.layout)
        if (
            len(self.layout) != self.PARTS
            or any(not isinstance(end, int) for end in ends)
            or list(ends) != sorted(ends)
        ):
            raise ConfigError(f"layout is {list(self.layout)!r:.60}; it must hold {self.PARTS} ends of parts, rising")
        for name, cells in (("large", self.cells), *((("small", self.small_cells),) if self.small_cells else ())):
            if math.isqrt(cells) ** 2 != cells:
                raise ConfigError(
                    f"the {name} image of layout {list(self.layout)} has {cells} cells, which is no square"
                )
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size is {self.kernel_size}; a window stands around a cell and is odd")
        if self.extra_positions < self.cells:
            raise ConfigError(
                f"new_sequence_length = {self.new_sequence_length} leaves {self.extra_positions} positions for "
                f"{self.cells} cells"
            )

    @property
    def first(self) -> int:
        """Tokens before the large image."""
        return self.layout[-2]

    @property
    def cells(self) -> int:
        """Of the large image."""
        return self.layout[-1] - self.layout[-2]

    @property
    def small_cells(self) -> int:
        """Of the small image; 0 where the sequence holds none."""
        return self.layout[1] - self.layout[0] if len(self.layout) == 3 else 0

    @property
    def extra_positions(self) -> int:
        """In the mixin's table."""
        return self.new_sequence_length - self.max_sequence_length

    @property
    def window(self) -> Window:
        """Of the large image around a cell."""
        return Window(2 * self.kernel_size - 1, self.kernel_size)


@dataclass(frozen=True, kw_only=True)
class DirectSRConfig(SuperResolutionConfig):
    """Direct super-resolution: all 60 x 60 codes in one forward.

    Attributes:
        kernel_size2: side of a window of the small image.
    """

    model_class: str = "DirectSRModel"
    layout: tuple[int, ...] = (96, 496, 4096)
    kernel_size2: int = 5

    PARTS = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "kernel_size2")
        if math.isqrt(self.cells) % math.isqrt(self.small_cells):
            raise ConfigError(f"the small image of layout {list(self.layout)} does not divide the large one")

    @property
    def small_window(self) -> Window:
        """Of the small image around the cell that covers the one that asks."""
        return Window(self.kernel_size2, self.kernel_size2)


@dataclass(frozen=True, kw_only=True)
class IterativeSRConfig(SuperResolutionConfig):
    """Iterative super-resolution: codes that are masked in a pattern and made anew, in passes."""

    model_class: str = "IterativeSRModel"
    layout: tuple[int, ...] = (16, 3616)


_WORDS, _EXTRA = "transformer.word_embeddings.weight", "mixins.extra_position_embedding.position_embeddings.weight"
_SECOND, _MIX = "mixins.attention_plus.query_key_value.0.weight", "mixins.attention_plus.attn_distribution.0"
_SANDWICH = "transformer.layers.0.third_layernorm.weight"


def config_of_weights(shapes: Mapping[str, Sequence[int]], told: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `model_config.json` of weights of CogView2: the originals' files name no class.

    Args:
        shapes: of the weights, by SAT's names.
        told: what stands beside them.

    Returns:
        None if they are another family's.
    """
    if "model_class" in told or not {_WORDS, _SANDWICH} <= shapes.keys() or _MIX in shapes:
        return None
    if _EXTRA not in shapes:
        return {**told, "model_class": "CogLMModel"}
    return {**told, "model_class": "DirectSRModel" if _SECOND in shapes else "IterativeSRModel"}
