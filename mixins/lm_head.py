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


class LMMixin(BaseMixin):
    """An output projection of its own (not tied to the embedding)."""

    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        make = partial(ColumnParallelLinear, gather_output=True, bias=False, module=self, name="lm_head")
        self.lm_head = head_of_words(partial(make, hidden_size, vocab_size), vocab_size)

    def final_forward(
        self,
        logits: Tensor,
        *,
        last_position_only: bool = False,
        last_positions: Tensor | None = None,
        wanted_positions: Tensor | None = None,
        **kw: Any,
    ) -> Tensor:
        """[B, S, D] -> [B, S, vocab], or [B, 1, vocab] when one position of each row is asked for.

        Args:
            last_position_only: S - 1.
            last_positions: [B], the position of each row, for rows with padding on the right.
            wanted_positions: [W], places in the B rows one after the other (row * S + position); the result is
                [W, vocab]. Training has labels at one position in ten, and needs no logits elsewhere.
        """
        hidden = leave_model_parallel_region(logits)
        if wanted_positions is not None:
            return project(self.lm_head, hidden.flatten(0, 1)[wanted_positions])
        if last_positions is not None:
            hidden = hidden[torch.arange(hidden.shape[0], device=hidden.device), last_positions].unsqueeze(1)
        return project(self.lm_head, hidden[:, -1:] if last_position_only else hidden)

    @stands_for("final_forward")
    def text_token(self) -> nn.Module:
        """The linear that makes logits of one position."""
        return self.lm_head
