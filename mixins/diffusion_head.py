"""The mixin "final_layer" of a diffusion transformer: from the image's tokens to latents.

Source: github.com/THUDM/CogView3 at d450a74, `sat/dit.py`.
Legend: B batch, T text tokens, P patches, p side of a patch, C channels, D hidden, E width of the time's vector.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mixins.parallel import leave_model_parallel_region
from mixins.patch_text_embedding import from_patches
from mixins.sat_compat import BaseMixin


class DiffusionHeadMixin(BaseMixin):
    """A second LayerNorm without weights, moved and scaled by the time, and a linear; text tokens are dropped.

    Args:
        hidden_size: D.
        time_embed_dim: E.
        patch_size: p.
        out_channels: C.
        epsilon: of the norm.
    """

    def __init__(
        self, hidden_size: int, time_embed_dim: int, patch_size: int, out_channels: int, *, epsilon: float = 1e-6
    ) -> None:
        super().__init__()
        self.patch_size, self.epsilon = patch_size, epsilon
        self.adaln = nn.Sequential(nn.SiLU(), nn.Linear(time_embed_dim, 2 * hidden_size))
        self.linear = nn.Linear(hidden_size, out_channels * patch_size**2)

    def final_forward(self, logits: Tensor, *, latents: Tensor, text: Tensor, emb: Tensor, **kw: Any) -> Tensor:
        """[B, T + P, D] -> [B, C, h, w] of the latents' size."""
        hidden = leave_model_parallel_region(logits)[:, text.shape[1] :]
        shift, scale = self.adaln(emb).unsqueeze(1).chunk(2, dim=-1)
        moved = F.layer_norm(hidden, hidden.shape[-1:], eps=self.epsilon) * (1 + scale) + shift
        return from_patches(self.linear(moved), self.patch_size, latents.shape[-1] // self.patch_size)
