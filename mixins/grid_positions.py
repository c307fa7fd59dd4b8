"""The mixin "pos_embed" of a diffusion transformer: sines and cosines of a patch's place in the image.

Legend: G side of the table, D hidden, T text tokens, P patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixins.sat_compat import BaseMixin


def sincos_1d(width: int, places: Tensor) -> Tensor:
    """[N] -> [N, width] in fp64: sines, then cosines, of place / 10000^(2i / width)."""
    powers = torch.arange(width // 2, dtype=torch.float64) / (width / 2)
    angles = places.double()[:, None] * 10000**-powers
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class GridPositionMixin(BaseMixin):
    """A table [G, G, D] whose first half tells the column and whose second half the row; an image takes its corner.

    It follows from the sizes; SAT's checkpoints carry it (rounded, where they are in bf16), diffusers' do not.

    Args:
        side: G.
        hidden_size: D.
        patch_size: of the latents.
    """

    image_pos_embedding: Tensor

    def __init__(self, side: int, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        table = torch.empty(side, side, hidden_size)
        self.register_buffer("image_pos_embedding", table)
        if not table.is_meta:
            self.image_pos_embedding = self.compute_image_pos_embedding("cpu")

    def compute_image_pos_embedding(self, device: torch.device | str) -> Tensor:
        """The table in fp32."""
        side, _, width = self.image_pos_embedding.shape
        one = sincos_1d(width // 2, torch.arange(side)).float()
        columns, rows = one.expand(side, -1, -1), one[:, None].expand(-1, side, -1)
        return torch.cat((columns, rows), dim=-1).to(device)

    def position_embedding_forward(self, position_ids: None, *, latents: Tensor, text: Tensor, **kw: Any) -> Tensor:
        """-> [1, T + P, D]; zeros for the text."""
        rows, columns = (size // self.patch_size for size in latents.shape[-2:])
        table = self.image_pos_embedding[:rows, :columns].flatten(0, 1)
        return torch.cat((table.new_zeros(text.shape[1], table.shape[1]), table)).unsqueeze(0)
