"""How the tiled forms of InternLM-XComposer2 see an image: a canvas of whole tiles on which it lies, its shape kept.

Facts: `HD_transform` of 4KHD (QimingLee/InternLM-XComposer-main at cc7b58a) and `Image_transform` of 2.5
(InternLM/InternLM-XComposer at 0f70c3e). We differ in giving an image that is flatter than a pixel one row of pixels,
where the originals fail.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field

from sat_models.config.images import ImagePlan, ImageProcessing, Size

WHITE = ImageProcessing(resampling="bilinear", colour=(255, 255, 255))


@dataclass(frozen=True, kw_only=True)
class TiledImages:
    """Images in as many tiles as their shape allows; the model cuts the canvas itself and adds the whole image.

    Attributes:
        side: of a tile in pixels.
        grid: tokens on a side of a tile.
        enlarges: images are enlarged to as many tiles as a call allows, and lie in the middle of their canvas (4KHD);
            else they take no more columns than they have pixels for, and lie at its beginning (2.5).
        most_tiles: see `ImageForm`.
        most_tiles_of_several: of each, where a call has several images.
        processing, constant: see `ImageForm`.
    """

    side: int
    grid: int
    enlarges: bool
    most_tiles: int
    most_tiles_of_several: int
    processing: ImageProcessing = field(default=WHITE)
    constant: bool = False

    def plan(self, size: Size | None = None, *, max_tiles: int | None = None) -> ImagePlan:
        """As `ImageForm.plan`. The longer side has as many tiles as fit; a portrait is laid on its side for it."""
        if size is None:
            return self._plan(1, self.side, transposed=False)
        long, short = max(size), min(size)
        ratio = long / short
        tiles = self._along(ratio, max_tiles or self.most_tiles)
        if not self.enlarges:
            tiles = min(math.ceil(long / self.side), tiles)
        return self._plan(tiles, max(1, int(tiles * self.side / ratio)), transposed=size[0] < size[1])

    @staticmethod
    def _along(ratio: float, most: int) -> int:
        """The largest number of tiles along the longer side with which no more than `most` are needed in all."""
        return bisect.bisect_right(range(1, most + 1), most, key=lambda tiles: tiles * math.ceil(tiles / ratio))

    def _plan(self, tiles: int, thickness: int, *, transposed: bool) -> ImagePlan:
        """A canvas of so many tiles along the longer side; the shorter one of the image has `thickness` pixels."""
        across = math.ceil(thickness / self.side)
        before = (across * self.side - thickness) // 2 if self.enlarges else 0
        canvas, box = (tiles * self.side, across * self.side), (0, before, tiles * self.side, thickness)
        if transposed:
            canvas, box = canvas[::-1], (box[1], box[0], box[3], box[2])
        length = self.tokens_of(tiles * across, canvas[1] // self.side, self.grid)
        return ImagePlan(length=length, canvas=canvas, box=box, transposed=transposed)

    @staticmethod
    def tokens_of(tiles: int, rows: int, grid: int) -> int:
        """Tokens of an image of so many tiles in so many rows: theirs and those of the whole image, a newline behind
        each line of tokens, and a separator."""
        return (tiles + 1) * grid**2 + 1 + (rows + 1) * grid
