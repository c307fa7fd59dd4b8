"""Attention of the super-resolution models: a large grid of image tokens that sees windows, behind a dense first part.

Source: github.com/THUDM/CogView2 at d92dbad, `sr_pipeline/`.
Legend: B batch, S tokens, F tokens of the first part, C cells of the large grid, N heads on this rank, D head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.grid_window import Window, window_scores, window_sum
from mixins.heads import HeadLayout
from mixins.linear import qkv_linear
from mixins.sat_compat import BaseMixin, RowParallelLinear, split_tensor_along_last_dim


def heads_of_row(row: Tensor, heads: int) -> list[Tensor]:
    """Queries, keys and values [B, N, S, D] from a row [B, S, 3 N D]."""
    parts = split_tensor_along_last_dim(row, 3)
    return [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts]


def joined(context: Tensor) -> Tensor:
    """[B, N, S, D] -> [B, S, N D]."""
    return context.transpose(1, 2).flatten(2)


def grid_of(x: Tensor) -> Tensor:
    """[B, N, side², D] -> [B, N, side, side, D]."""
    return x.unflatten(2, (math.isqrt(x.shape[2]), -1))


class SecondWeightsMixin(BaseMixin):
    """The mixin "attention_plus": queries, keys, values and output of a second attention in each layer."""

    def __init__(self, num_layers: int, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        heads = HeadLayout.even(num_heads, hidden_size // num_heads)
        self.query_key_value = nn.ModuleList(
            qkv_linear(hidden_size, heads, bias=True, module=self, name="query_key_value") for _ in range(num_layers)
        )
        self.dense = nn.ModuleList(
            RowParallelLinear(hidden_size, hidden_size, input_is_parallel=True, module=self, name="dense")
            for _ in range(num_layers)
        )


class DirectGridMixin(SecondWeightsMixin):
    """Direct super-resolution: the large grid has weights of its own, and each of its cells sees a window of it and one
    of the small grid, which ends the first part; one softmax over both.

    Args:
        first: F.
        small: tokens of the small grid.
        window, small_window: of the two grids.
    """

    def __init__(
        self, num_layers: int, hidden_size: int, num_heads: int, *, first: int, small: int, window: Window,
        small_window: Window,
    ) -> None:  # fmt: skip
        super().__init__(num_layers, hidden_size, num_heads)
        self.first, self.small, self.window, self.small_window = first, small, window, small_window

    def attention_forward(self, hidden_states: Tensor, mask: Tensor, *, bias: Tensor, **kw: Any) -> Tensor:
        """[B, S, D]; bias [B or 1, 1, F, F] is added to the scores of the first part -> [B, S, D]."""
        layer = int(kw["layer_id"])
        own = self.transformer.layers[layer].attention
        heads = own.num_attention_heads_per_partition
        before, grid = hidden_states[:, : self.first], hidden_states[:, self.first :]
        q, k, v = heads_of_row(own.query_key_value(before), heads)
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        asked, keys, values = map(grid_of, heads_of_row(self.query_key_value[layer](grid), heads))
        coarse_keys, coarse_values = (grid_of(x[:, :, -self.small :]) for x in (k, v))
        asked = asked / math.sqrt(asked.shape[-1])
        scores = (window_scores(asked, coarse_keys, self.small_window), window_scores(asked, keys, self.window))
        weights = torch.cat(scores, dim=-1).softmax(-1)
        coarse, fine = weights.split((self.small_window.places, self.window.places), dim=-1)
        seen = window_sum(coarse, coarse_values, self.small_window) + window_sum(fine, values, self.window)
        return torch.cat((own.dense(joined(context)), self.dense[layer](joined(seen.flatten(2, 3)))), dim=1)


class IterativeGridMixin(BaseMixin):
    """Iterative super-resolution: one set of weights; a cell sees a window of the grid and all of the text.

    It has no parameters and stands under the name "grid_attention", which no checkpoint holds.

    Args:
        first: F, all of it text.
        window: of the grid.
    """

    def __init__(self, *, first: int, window: Window) -> None:
        super().__init__()
        self.first, self.window = first, window

    def attention_forward(self, hidden_states: Tensor, mask: Tensor, *, bias: Tensor, **kw: Any) -> Tensor:
        """As `DirectGridMixin`; what the last row of `bias` says of the text holds for the cells, too."""
        own = self.transformer.layers[int(kw["layer_id"])].attention
        rows = heads_of_row(own.query_key_value(hidden_states), own.num_attention_heads_per_partition)
        q, k, v = (x[:, :, : self.first] for x in rows)
        asked, keys, values = (grid_of(x[:, :, self.first :]) for x in rows)
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        asked = asked / math.sqrt(asked.shape[-1])
        of_text = asked.flatten(2, 3) @ k.transpose(2, 3) + bias[:, :, -1:]
        of_grid = window_scores(asked, keys, self.window).flatten(2, 3)
        text, grid = torch.cat((of_text, of_grid), dim=-1).softmax(-1).split((self.first, self.window.places), dim=-1)
        fine = window_sum(grid.unflatten(2, asked.shape[2:4]), values, self.window).flatten(2, 3)
        return own.dense(joined(torch.cat((context, text @ v + fine), dim=2)))
