"""Sizes of training images: each is scaled and cut to that of a few sizes ("buckets") which is nearest to its shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sat_models.config import DiffusionConfig
from sat_models.processing.image import load_image

Size = tuple[int, int]
"""Width and height in pixels."""
_LIKE = (0.75, 1.25)
"""Pixels that a bucket may have, in multiples of those that are asked for."""


@dataclass(frozen=True)
class Frame:
    """What becomes of an image.

    Attributes:
        original: its size.
        scaled: its size after it was scaled, at least `size`.
        size: of what is cut out of the middle, the bucket's.
    """

    original: Size
    scaled: Size
    size: Size

    @property
    def crop(self) -> Size:
        """What is cut off at the top and at the left, in scaled pixels."""
        return (self.scaled[1] - self.size[1]) // 2, (self.scaled[0] - self.size[0]) // 2

    @property
    def enlarged(self) -> bool:
        """True if it has less pixels than it is trained with."""
        return self.scaled[0] > self.original[0]

    def pixels(self, image: Path) -> Tensor:
        """[3, H, W] in -1 … 1 of an image file. Raises InputError where it cannot be read."""
        opened = load_image(image).resize(self.scaled, Image.Resampling.LANCZOS)
        top, left = self.crop
        cut = opened.crop((left, top, left + self.size[0], top + self.size[1]))
        return torch.from_numpy(np.asarray(cut).copy()).permute(2, 0, 1).float() / 127.5 - 1

    def conditions(self) -> dict[str, tuple[int, int]]:
        """What a model is told of it, by its arguments: (height, width), (top, left)."""
        original, size = (tuple(reversed(pair)) for pair in (self.original, self.size))
        return {"original_size": original, "crop": self.crop, "target_size": size}


def buckets(config: DiffusionConfig, size: Size, *, one: bool = False) -> list[Size]:
    """The sizes that images are brought to.

    Args:
        size: about as many pixels as it has.
        one: that size alone.

    Raises:
        InputError: a size that the model was not made for.
    """
    config.check_size(*size)
    if one:
        return [size]
    area, step, found = size[0] * size[1], config.side_multiple, [size]
    for width in range(-(-config.least_side // step) * step, config.most_side + 1, step):
        height = max(config.least_side, min(config.most_side, round(area / width / step) * step))
        pixels = width * height
        if height % step == 0 and pixels <= config.most_pixels and _LIKE[0] <= pixels / area <= _LIKE[1]:
            found.append((width, height))
    return list(dict.fromkeys(found))


def frame_of(original: Size, sizes: Sequence[Size]) -> Frame:
    """The frame of an image of some size, in the bucket whose shape is nearest."""
    width, height = original
    chosen = min(sizes, key=lambda size: abs(math.log(size[0] * height / (size[1] * width))))
    factor = max(chosen[0] / width, chosen[1] / height)
    scaled = (max(chosen[0], round(width * factor)), max(chosen[1], round(height * factor)))
    return Frame(original, scaled, chosen)
