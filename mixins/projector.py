"""From vision width to language width.

Legend: P image tokens, V vision width, D language width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class GLUProjector(nn.Module):
    """CogVLM's projector, `linear_proj` in its checkpoints: Linear, LayerNorm, GELU, SwiGLU. The same on each rank."""

    def __init__(self, vision_size: int, hidden_size: int, inner_hidden_size: int) -> None:
        super().__init__()
        self.linear_proj = nn.Linear(vision_size, hidden_size, bias=False)
        self.norm1 = nn.LayerNorm(hidden_size)
        self.dense_h_to_4h = nn.Linear(hidden_size, inner_hidden_size, bias=False)
        self.gate_proj = nn.Linear(hidden_size, inner_hidden_size, bias=False)
        self.dense_4h_to_h = nn.Linear(inner_hidden_size, hidden_size, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """[B, P, V] -> [B, P, D]."""
        x = F.gelu(self.norm1(self.linear_proj(features)))
        return self.dense_4h_to_h(F.silu(self.gate_proj(x)) * self.dense_h_to_4h(x))
