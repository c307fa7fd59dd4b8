"""How InternVL takes images: as one square, or cut into a grid of square tiles with an overview behind them.

Source: `dynamic_preprocess` in `internvl_chat/internvl/train/dataset.py` of its repository at 2410d1d.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from sat_models.config import ImagePlan, ImageProcessing
from sat_models.config.images import Size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class TiledImages:
    """An `ImageForm`. A tile takes the same number of tokens whatever it shows.

    Attributes:
        side: of a tile in pixels.
        length: tokens of a tile.
        processing: as `ImageForm.processing`.
        least_tiles, most_tiles: of one image where a call does not say otherwise, an overview not counted.
        overview: an image of more than one tile is shown once more as a whole.
    """

    side: int
    length: int
    processing: ImageProcessing
    least_tiles: int = 1
    most_tiles: int = 1
    overview: bool = False

    @property
    def constant(self) -> bool:
        """As `ImageForm.constant`."""
        return self.most_tiles == 1

    def plan(self, size: Size | None = None, *, max_tiles: int | None = None) -> ImagePlan:
        """As `ImageForm.plan`."""
        most = max_tiles or self.most_tiles
        grid = (1, 1) if size is None else nearest_grid(size, self.side, min(self.least_tiles, most), most)
        tiles = grid[0] * grid[1]
        overview = self.overview and tiles > 1
        return ImagePlan(
            length=self.length * (tiles + overview),
            canvas=(grid[0] * self.side, grid[1] * self.side),
            grid=grid,
            overview=overview,
        )


def nearest_grid(size: Size, side: int, least: int, most: int) -> tuple[int, int]:
    """(columns, rows) of the grid whose shape is nearest to an image's.

    Of equally near ones a later one (see `grids`) is taken if the image has more than half as many pixels.

    Args:
        size: of the image.
        side: of a tile.
        least, most: tiles.
    """
    width, height = size
    nearest, distance = (1, 1), float("inf")
    for columns, rows in grids(least, most):
        away = abs(width / height - columns / rows)
        if away < distance or (away == distance and width * height > 0.5 * side * side * columns * rows):
            nearest, distance = (columns, rows), away
    return nearest


@functools.cache
def grids(least: int, most: int) -> tuple[tuple[int, int], ...]:
    """Grids of at least and at most so many tiles, those with fewer tiles first.

    Among grids of the same number of tiles the order is that in which CPython goes through a set of these pairs, put in
    as here: the original has it so, and the weights saw the grids that it chose.
    """
    pairs = {
        (columns, rows)
        for bound in range(least, most + 1)
        for columns in range(1, bound + 1)
        for rows in range(1, bound + 1)
        if least <= columns * rows <= most
    }
    return tuple(sorted(pairs, key=lambda grid: grid[0] * grid[1]))
