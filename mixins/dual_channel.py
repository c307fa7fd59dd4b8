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
from mixins.kv_cache import KVStore


class FrameMemory:
    """Keys and values of both attentions while frames are written: of the text, of the frames that were given, and of
    what has been made.

    The first attention sees the text and its own frame alone, so that a frame that is done is forgotten there.

    Args:
        num_layers: of the model.
        text: tokens of the text.
        frame: tokens of a frame.
        frames: most frames.

    Attributes:
        length: tokens that have been read.
    """

    def __init__(self, num_layers: int, *, text: int, frame: int, frames: int) -> None:
        self.text, self.frame, self.length = text, frame, 0
        self._own, self._all = KVStore(num_layers, text + frame), KVStore(num_layers, text + frame * frames)

    def advance(self, tokens: int) -> None:
        """Count tokens as read, after a forward over them: first the text and whole frames, then one at a time."""
        self._own.advance(tokens if self.length else self.text)
        self._all.advance(tokens)
        self.length += tokens
        if (self.length - self.text) % self.frame == 0:
            self._own.truncate(self.text)

    @property
    def own_length(self) -> int:
        """Tokens that the first attention of the next one sees besides it."""
        return self._own.length

    def first(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What the first attention of new tokens sees, [B, N, S, D] each."""
        if self.length:
            return self._own.append(layer, k, v)
        self._own.append(layer, k[:, :, : self.text], v[:, :, : self.text])
        return k, v

    def second(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What the second one sees."""
        return self._all.append(layer, k, v)


class DualChannelMixin(SecondWeightsMixin):
    """Each number of a frame's output is σ(a) of the first attention and 1 − σ(a) of the second, a learned in each
    layer (`attn_distribution`). Text runs through the first alone."""

    def __init__(self, num_layers: int, hidden_size: int, num_heads: int) -> None:
        super().__init__(num_layers, hidden_size, num_heads)
        self.attn_distribution = nn.ParameterList(nn.Parameter(torch.zeros(hidden_size)) for _ in range(num_layers))

    def attention_forward(
        self, hidden_states: Tensor, mask: Tensor, *, bias: Tensor, second_biases: tuple[Tensor, ...],
        memory: FrameMemory | None = None, **kw: Any,
    ) -> Tensor:  # fmt: skip
        """[B, S, D] -> [B, S, D].

        Args:
            bias: [1, 1, S, T], added to the scores of the first attention; T is S, or what the memory shows.
            second_biases: [1, 1, A, T], of the second: one for the layers in turn; none switches it off.
            memory: keeps keys and values, and shows those of tokens before.
        """
        layer = int(kw["layer_id"])
        own = self.transformer.layers[layer].attention
        heads = own.num_attention_heads_per_partition
        q, k, v = heads_of_row(own.query_key_value(hidden_states), heads)
        if memory is not None:
            k, v = memory.first(layer, k, v)
        first = own.dense(joined(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)))
        if not second_biases:
            return first
        second_bias = second_biases[layer % len(second_biases)]
        text = hidden_states.shape[1] - second_bias.shape[2]
        q, k, v = heads_of_row(self.query_key_value[layer](hidden_states), heads)
        if memory is not None:
            k, v = memory.second(layer, k, v)
        if text == hidden_states.shape[1]:
            return first
        seen = F.scaled_dot_product_attention(q[:, :, text:], k, v, attn_mask=second_bias)
        share = torch.sigmoid(self.attn_distribution[layer])
        mixed = share * first[:, text:] + (1 - share) * self.dense[layer](joined(seen))
        return torch.cat((first[:, :text], mixed), dim=1)
