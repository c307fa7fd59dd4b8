"""Rows of key tables: what stands for a SAT weight in Hugging Face files where it is more than a name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Joined:
    """Weights that SAT holds as one, one below the other: of one size, or q, k and v by the model's heads."""

    names: tuple[str, ...]
    by_heads: bool = False


@dataclass(frozen=True)
class Packed:
    """q, k and v as one weight on both sides: whole parts in SAT, and in the files group by group, each with its
    queries, its key and its value (`wqkv` of InternLM2)."""

    name: str


@dataclass(frozen=True)
class Lifted:
    """A weight that SAT holds with one more dimension, of size 1, in front."""

    name: str


@dataclass(frozen=True)
class Lowered:
    """A weight that the files hold with one more dimension, of size 1, in front."""

    name: str


@dataclass(frozen=True)
class Swapped:
    """A weight whose two halves the files hold in the other order."""

    name: str


@dataclass(frozen=True)
class Interleaved:
    """Weights that SAT holds as one: the first piece of each, then the second of each, and so on."""

    names: tuple[str, ...]
    pieces: int


@dataclass(frozen=True)
class Stacked:
    """One of `slots` weights of SAT's, of one size, that the files hold as one, one below the other."""

    name: str
    slot: int
    slots: int


@dataclass(frozen=True)
class Positions:
    """A tower's table of positions, the class token's first; that of another square grid is resized to this one.

    Attributes:
        patches: rows besides the first.
    """

    name: str
    patches: int


@dataclass(frozen=True)
class Place:
    """Where a weight of Hugging Face's belongs, or slot `slot` of `slots` of it: part `part` of `parts` of the SAT
    weight `name`."""

    name: str
    part: int = 0
    parts: int = 1
    lifted: bool = False
    by_heads: bool = False
    packed: bool = False
    slot: int = 0
    slots: int = 1
    lowered: bool = False
    patches: int = 0
    swapped: bool = False
    pieces: int = 1

    def taken(self, value: Tensor) -> Tensor:
        """The part of a weight in the files that belongs here, in SAT's shape."""
        own = value.tensor_split(self.slots)[self.slot] if self.slots > 1 else value
        if self.patches:
            own = resized(own, self.patches)
        if self.swapped:
            own = swapped(own)
        return own[None] if self.lifted else own[0] if self.lowered else own


Row = str | Interleaved | Joined | Lifted | Lowered | Packed | Positions | Stacked | Swapped
"""The counterpart in the files of a weight of SAT's."""


def interleaved(parts: Sequence[Tensor], pieces: int) -> Tensor:
    """The first piece of each part, then the second of each, and so on."""
    return torch.stack([part.unflatten(0, (pieces, -1)) for part in parts], dim=1).flatten(0, 2)


def part_of_interleaved(whole: Tensor, part: int, parts: int, pieces: int) -> Tensor:
    """The inverse of `interleaved` for one part."""
    return whole.unflatten(0, (pieces, parts, -1))[:, part].flatten(0, 1)


def swapped(value: Tensor) -> Tensor:
    """The second half of the rows, then the first."""
    return torch.cat(value.chunk(2)[::-1])


def resized(table: Tensor, patches: int) -> Tensor:
    """A table of positions [1 + grid * grid, V] for another square grid, [1 + patches, V]: bicubic in fp32, the class
    token's row kept. One of no square grid stays as it is, so that it is named as a weight that does not fit."""
    old, new = math.isqrt(len(table) - 1), math.isqrt(patches)
    if len(table) == 1 + patches or len(table) != 1 + old**2 or new**2 != patches:
        return table
    grid = table[1:].float().unflatten(0, (old, old)).permute(2, 0, 1)[None]
    made = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)[0].flatten(1).T
    return torch.cat((table[:1], made.to(table.dtype)))
