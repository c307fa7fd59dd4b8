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


class MLPProjector(nn.Module):
    """LLaVA 1.5's projector: Linear, GELU, Linear."""

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_size, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """[B, P, V] -> [B, P, D]."""
        return self.linear_2(F.gelu(self.linear_1(features)))


class NormedMLPProjector(MLPProjector):
    """InternVL's projector: LayerNorm (eps 1e-5), Linear, GELU, Linear."""

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__(vision_size, hidden_size)
        self.norm = nn.LayerNorm(vision_size)

    def forward(self, features: Tensor) -> Tensor:
        """[B, P, V] -> [B, P, D]."""
        return super().forward(self.norm(features))


def make_projector(kind: str, vision_size: int, hidden_size: int) -> nn.Module:
    """[B, P, V] -> [B, P, D]: "linear" or "mlp2x_gelu", as LLaVA's configs name them. Raises ValueError."""
    if kind == "linear":
        return nn.Linear(vision_size, hidden_size)
    if kind == "mlp2x_gelu":
        return MLPProjector(vision_size, hidden_size)
    raise ValueError(f"projector {kind!r} is unknown; allowed: linear, mlp2x_gelu")
