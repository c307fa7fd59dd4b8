"""How a row of queries, keys and values is cut into heads: the one place that knows it.

Queries may share keys and values in groups (grouped-query attention, arXiv 2305.13245): head n reads those of key/value
head n // group.

Legend: B batch, N query heads, G key/value heads, S tokens, H head dim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class HeadLayout:
    """A row of N queries, G keys and G values of H numbers each, in this order, and how queries and keys turn.

    Attributes:
        num_heads: N, over all ranks unless it comes from `on_rank`.
        num_kv_heads: G; N is a multiple of it.
        head_dim: H.
        rope_theta: base of the rotary frequencies.
        rotary_dim: how much of a head turns, from its first number on; the rest passes unchanged.
        interleaved: whether neighbours turn together (2i and 2i + 1), or the halves of what turns (i and i + half).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10000.0
    rotary_dim: int
    interleaved: bool = False

    @classmethod
    def even(cls, num_heads: int, head_dim: int) -> HeadLayout:
        """As many keys and values as queries, whole heads turned by halves: LLaMA as it began."""
        return cls(num_heads=num_heads, num_kv_heads=num_heads, head_dim=head_dim, rotary_dim=head_dim)

    @property
    def group(self) -> int:
        """Queries that share a key and a value."""
        return self.num_heads // self.num_kv_heads

    @property
    def parts(self) -> tuple[int, int, int]:
        """Heads of queries, keys and values in a row."""
        return self.num_heads, self.num_kv_heads, self.num_kv_heads

    @property
    def row_heads(self) -> int:
        """Heads in a row, N + 2G."""
        return sum(self.parts)

    @property
    def row_size(self) -> int:
        """Outputs of the projection to queries, keys and values."""
        return self.row_heads * self.head_dim

    @property
    def context_size(self) -> int:
        """Inputs of the projection behind attention."""
        return self.num_heads * self.head_dim

    @property
    def stride(self) -> int | list[int]:
        """Relative sizes of the three parts, as SAT's column-parallel linear wants them."""
        return 3 if self.group == 1 else [self.group, 1, 1]

    def spread(self, ranks: int) -> HeadLayout:
        """With keys and values as often as so many ranks need them, which divide the queries (see `heads_of_rank`)."""
        return replace(self, num_kv_heads=math.lcm(self.num_kv_heads, ranks))

    def on_rank(self, ranks: int) -> HeadLayout:
        """The part of each of so many ranks, which divide the queries."""
        spread = self.spread(ranks)
        return replace(spread, num_heads=self.num_heads // ranks, num_kv_heads=spread.num_kv_heads // ranks)


def heads_of_rank(heads: int, rank: int, size: int) -> list[int]:
    """Which of so many heads one of `size` ranks holds, in order.

    Its share, where the ranks divide them. Else several ranks hold copies of a head, as many as make the least number
    that the ranks do divide; the queries of a rank then read its own keys and values and no others.
    """
    copies = math.lcm(heads, size)
    each = copies // size
    return [(rank * each + place) * heads // copies for place in range(each)]


def heads_of(linear: nn.Module) -> HeadLayout | None:
    """The heads that a projection to queries, keys and values makes, over all ranks, where queries share keys."""
    return getattr(linear, "head_layout", None)


def repeated(x_BGSH: Tensor, heads: int) -> Tensor:
    """Keys or values once for each query head that reads them: [B, G, S, H] -> [B, N, S, H]."""
    own = x_BGSH.shape[1]
    return x_BGSH if own == heads else x_BGSH.repeat_interleave(heads // own, dim=1)
