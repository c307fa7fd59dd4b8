"""The mixin "attention_plus" of CogVideo: a second attention over all frames, mixed with that of an image model.

Source: CogVideo, arXiv 2205.15868, section 3.1, and its repository at 5f914b7.
Legend: B batch, S tokens, T text tokens, A tokens of frames, N heads on this rank, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.grid_attention import SecondWeightsMixin, heads_of_row, joined


class DualChannelMixin(SecondWeightsMixin):
    """Each number of a frame's output is σ(a) of the first attention and 1 − σ(a) of the second, a learned in each
    layer (`attn_distribution`). Text runs through the first alone."""

    def __init__(self, num_layers: int, hidden_size: int, num_heads: int) -> None:
        super().__init__(num_layers, hidden_size, num_heads)
        self.attn_distribution = nn.ParameterList(nn.Parameter(torch.zeros(hidden_size)) for _ in range(num_layers))

    def attention_forward(
        self, hidden_states: Tensor, mask: Tensor, *, bias: Tensor, second_biases: tuple[Tensor, ...], **kw: Any
    ) -> Tensor:
        """[B, S, D] -> [B, S, D].

        Args:
            bias: [1, 1, S, S], added to the scores of the first attention.
            second_biases: [1, 1, A, S], of the second: one for the layers in turn; none switches it off.
        """
        layer = int(kw["layer_id"])
        own = self.transformer.layers[layer].attention
        heads = own.num_attention_heads_per_partition
        q, k, v = heads_of_row(own.query_key_value(hidden_states), heads)
        first = own.dense(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)))
        if not second_biases:
            return first
        second_bias = second_biases[layer % len(second_biases)]
        text = hidden_states.shape[1] - second_bias.shape[2]
        q, k, v = heads_of_row(self.query_key_value[layer](hidden_states), heads)
        seen = F.scaled_dot_product_attention(q[:, :, text:], k, v, attn_mask=second_bias)
        share = torch.sigmoid(self.attn_distribution[layer])
        mixed = share * first[:, text:] + (1 - share) * self.dense[layer](joined(seen))
        return torch.cat((first[:, :text], mixed), dim=1)
