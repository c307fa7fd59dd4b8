"""The mixin "patch_embed" of a diffusion transformer: text tokens, and patches of the latents behind them.

Source: github.com/THUDM/CogView3 at d450a74, `sat/dit.py`.
Legend: B batch, C channels, h and w of the latents, p side of a patch, P patches, T text tokens, D hidden, E text
width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixins.sat_compat import BaseMixin


def to_patches(latents: Tensor, side: int) -> Tensor:
    """[B, C, h, w] -> [B, P, C * p * p], row by row; h and w are multiples of p."""
    cut = latents.unflatten(-1, (-1, side)).unflatten(-3, (-1, side))  # B, C, rows, p, columns, p
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(patches: Tensor, side: int, columns: int) -> Tensor:
    """The inverse of `to_patches`, for latents that are so many patches wide."""
    grid = patches.unflatten(-1, (-1, side, side)).unflatten(1, (-1, columns))  # B, rows, columns, C, p, p
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


class PatchTextEmbeddingMixin(BaseMixin):
    """Latents and the text encoder's output, each through a linear of its own, as one sequence.

    Args:
        in_channels: C.
        hidden_size: D.
        patch_size: p.
        text_hidden_size: E.
    """

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int, text_hidden_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Linear(in_channels * patch_size**2, hidden_size)
        self.text_proj = nn.Linear(text_hidden_size, hidden_size)

    def word_embedding_forward(self, input_ids: Tensor, *, latents: Tensor, text: Tensor, **kw: Any) -> Tensor:
        """latents [B, C, h, w] and text [B, T, E] -> [B, T + P, D]; `input_ids` only counts the batch for SAT."""
        return torch.cat((self.text_proj(text), self.proj(to_patches(latents, self.patch_size))), dim=1)
