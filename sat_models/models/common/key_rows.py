"""Rows of key tables: what stands for a SAT weight in Hugging Face files where it is more than a name."""

from __future__ import annotations

from dataclasses import dataclass

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
class Stacked:
    """One of `slots` weights of SAT's, of one size, that the files hold as one, one below the other."""

    name: str
    slot: int
    slots: int


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

    def taken(self, value: Tensor) -> Tensor:
        """The part of a weight in the files that belongs here, in SAT's shape."""
        own = value.tensor_split(self.slots)[self.slot] if self.slots > 1 else value
        return own[None] if self.lifted else own[0] if self.lowered else own


Row = str | Joined | Lifted | Lowered | Packed | Stacked
"""The counterpart in the files of a weight of SAT's."""
