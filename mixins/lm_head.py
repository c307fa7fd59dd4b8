"""The mixin "lm": logits over the vocabulary, gathered from all model-parallel ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixins.linear import project
from mixins.parallel import leave_model_parallel_region
from mixins.sat_compat import BaseMixin, ColumnParallelLinear
from mixins.text_token import stands_for
from mixins.whole import head_of_words


def places_read(
    hidden: Tensor,
    *,
    last_position_only: bool = False,
    last_positions: Tensor | None = None,
    wanted_positions: Tensor | None = None,
    **kw: Any,
) -> Tensor | None:
    """Which places of hidden states [B, S, D] the logits are made of, in the B rows one after the other (row * S +
    position); None: all.

    Args:
        last_position_only: S - 1 of each row.
        last_positions: [B], the position of each row, for rows with padding on the right.
        wanted_positions: [W], the places themselves. Training has labels at one position in ten, and needs no logits
            elsewhere.
    """
    if wanted_positions is not None:
        return wanted_positions
    batch, length = hidden.shape[:2]
    if last_positions is None:
        if not last_position_only:
            return None
        last_positions = length - 1
    return torch.arange(0, batch * length, length, device=hidden.device) + last_positions


class LMMixin(BaseMixin):
    """An output projection of its own (not tied to the embedding)."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        make = partial(ColumnParallelLinear, gather_output=True, bias=False, module=self, name="lm_head")
        self.lm_head = head_of_words(partial(make, hidden_size, vocab_size), vocab_size)

    def final_forward(self, logits: Tensor, **kw: Any) -> Tensor:
        """[B, S, D] -> [B, S, vocab], or the logits of the places that are read alone (`places_read`): [B, 1, vocab]
        when one position of each row is asked for, [W, vocab] for `wanted_positions`."""
        hidden = leave_model_parallel_region(logits)
        places = places_read(hidden, **kw)
        if places is None:
            return project(self.lm_head, hidden)
        rows = hidden.flatten(0, 1)[places]
        return project(self.lm_head, rows if kw.get("wanted_positions") is not None else rows.unsqueeze(1))

    @stands_for("final_forward")
    def text_token(self) -> nn.Module:
        """The linear that makes logits of one position."""
        return self.lm_head
