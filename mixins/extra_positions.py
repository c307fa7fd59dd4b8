"""The mixin "extra_position_embedding": learned positions behind those of the transformer's own table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixins.sat_compat import BaseMixin


class ExtraPositionMixin(BaseMixin):
    """Positions from `first` on are looked up in a table of this mixin, the others in the transformer's.

    Args:
        count: of positions in the table.
        hidden_size: D.
        first: the first of them.
    """

    def __init__(self, count: int, hidden_size: int, first: int) -> None:
        super().__init__()
        self.first = first
        self.position_embeddings = nn.Embedding(count, hidden_size)

    def position_embedding_forward(self, position_ids: Tensor, *args: Any, **kw: Any) -> Tensor:
        """[B, S] -> [B, S, D]."""
        own = self.transformer.position_embeddings
        extra = position_ids >= self.first
        usual = own(position_ids.masked_fill(extra, 0))
        return torch.where(
            extra.unsqueeze(-1), self.position_embeddings((position_ids - self.first).clamp(min=0)), usual
        )
