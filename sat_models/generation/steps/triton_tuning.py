"""Sizes of the Triton kernels' tiles: the one place for what a run on a GPU finds.

Nothing is tuned while a program runs, which would cost seconds at each start. `scripts/measure_kernels.py --device
cuda` times other sizes beside these and prints the lines to put here. These were chosen by rule and not yet measured on
a GPU: a program keeps 2 to 8 KB of weights on their way, several of them share a processor, and a product of 4096
outputs makes about four for each processor of an H100 (one input) or one (several).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tiles:
    """A program's part of a product.

    Attributes:
        outputs: rows of the weight, a power of two; at least 16 where several inputs share them.
        columns: of the stored weight that it reads at once (bytes in 4 bits), a power of two.
        warps: of 32 threads.
        stages: turns of the loop whose loads are on their way at once.
    """

    outputs: int
    columns: int
    warps: int
    stages: int


PRODUCTS = {
    # (bits of a weight: 16 also stands for 32; inputs at once): tiles
    (16, 1): Tiles(8, 512, 4, 1),
    (16, 16): Tiles(32, 128, 4, 4),
    (16, 32): Tiles(32, 128, 4, 4),
    (8, 1): Tiles(8, 1024, 4, 1),
    (8, 16): Tiles(32, 128, 4, 4),
    (8, 32): Tiles(32, 128, 4, 4),
    (4, 1): Tiles(8, 256, 4, 1),
    (4, 16): Tiles(32, 64, 4, 3),
    (4, 32): Tiles(32, 64, 4, 3),
}

MAX_ROWS = 32
"""More rows share a read of a weight better in cuBLAS's kernels."""

COLUMNS = 64
"""Columns of the cache that a program of attention reads at once."""

ATTENTION_WARPS = 4

PROGRAMS = 512
"""Of attention in all, about: the columns of a head are split until there are so many (an H100 has 132 processors)."""

MOST_SPLITS = 32


def product_tiles(bits: int, rows: int) -> Tiles:
    """For `rows` inputs of a weight of so many bits a number."""
    return PRODUCTS[min(bits, 16), 1 if rows == 1 else 16 if rows <= 16 else 32]


def splits(heads: int, columns: int) -> int:
    """Parts in which the columns of a head are read: a power of two.

    Args:
        heads: key/value heads of all rows.
        columns: of the cache, used or not: recorded once, a launch serves all lengths.
    """
    parts = 1
    while 2 * parts <= MOST_SPLITS and 2 * parts * heads <= PROGRAMS and 2 * parts * COLUMNS <= columns:
        parts *= 2
    return parts
