"""Layers of ChatGLM-6B: rotary in two dimensions, residuals scaled up after the norms.

Source: GLM-130B, arXiv 2210.02414 (section 2.1), and ChatGLM-6B as SAT 0.4.12 has it; positions as in GLM,
arXiv 2103.10360 section 2.1.2.
Legend: B batch, N heads on this rank, S tokens, D hidden, H head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixins.heads import HeadLayout
from mixins.rotary import RotaryEmbedding, RotaryMixin, RotaryRows, rotate_half_split, widen
from mixins.sat_compat import BaseMixin


class BlockRotaryEmbedding(RotaryEmbedding):
    """One table for both rows of positions; angles in fp32 from frequencies in the model's dtype, as the original."""

    def _angles(self, length: int, dtype: torch.dtype) -> Tensor:
        places = torch.arange(length, device=self.inv_freq.device, dtype=torch.float32)
        return torch.outer(places, self.inv_freq.float())

    def rows(self, position_ids_B2S: Tensor, max_position: int) -> RotaryRows:
        """Rows [B, 1, S, 2, H/2] for position_ids [B, 2, S]: place in the context, place in the answer."""
        cos, sin = self.table(max_position + 1)
        places = position_ids_B2S.transpose(1, 2)
        return widen(cos[places].unsqueeze(1), sin[places].unsqueeze(1))


class BlockRotaryMixin(RotaryMixin):
    """The mixin "chatglm-attn": the first half of a head turns with the first row of positions, the other with the
    second."""

    def _make_rotary(self, heads: HeadLayout, table_dtype: torch.dtype | None) -> RotaryEmbedding:
        return BlockRotaryEmbedding(heads.head_dim // 2, heads.rope_theta, table_dtype)

    def _rotate(self, heads: Tensor, rows: RotaryRows) -> Tensor:
        return rotate_half_split(heads.unflatten(-1, (2, -1)), rows).flatten(-2)


class ScaledResidualMixin(BaseMixin):
    """The mixin "chatglm-layer": `x = LN(x); x = scale · x + attention(x)`, and the same with the MLP."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def layer_forward(self, hidden_states: Tensor, mask: Tensor, *args: Any, **kw: Any) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        layer = self.transformer.layers[int(kw["layer_id"])]
        normed = layer.input_layernorm(hidden_states)
        hidden_states = normed * self.scale + layer.attention(normed, mask, **kw)
        normed = layer.post_attention_layernorm(hidden_states)
        return normed * self.scale + layer.mlp(normed, **kw)
