"""The mixin "final_layer" of a diffusion transformer: from the image's tokens to latents.

Sources: github.com/THUDM/CogView3 at d450a74, `sat/dit.py`; github.com/THUDM/CogVideo at v1.0 and e519ece,
`sat/dit_video_concat.py`.
Legend: B batch, T text tokens, P patches, p side of a patch, o its frames, C channels, D hidden, E width of the time's
vector.
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
        patch_frames: o.
        epsilon: of the norm.
    """

    def __init__(
        self,
        hidden_size: int,
        time_embed_dim: int,
        patch_size: int,
        out_channels: int,
        *,
        patch_frames: int = 1,
        epsilon: float = 1e-6,
    ) -> None:
        super().__init__()
        self.patch_size, self.patch_frames, self.epsilon = patch_size, patch_frames, epsilon
        self._make_norm(hidden_size, nn.Sequential(nn.SiLU(), nn.Linear(time_embed_dim, 2 * hidden_size)))
        self.linear = nn.Linear(hidden_size, out_channels * patch_frames * patch_size**2)

    def _make_norm(self, hidden_size: int, moves: nn.Sequential) -> None:
        """Take what makes shift and scale of the time, under the checkpoint's name."""
        self.adaln = moves

    def _normed(self, hidden: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        """The norm [B, P, D], and what the time says [B, 2D]."""
        return F.layer_norm(hidden, hidden.shape[-1:], eps=self.epsilon), self.adaln(emb)

    def final_forward(self, logits: Tensor, *, latents: Tensor, text: Tensor, emb: Tensor, **kw: Any) -> Tensor:
        """[B, T + P, D] -> latents of the size of `latents`, with C channels."""
        hidden, moves = self._normed(leave_model_parallel_region(logits)[:, text.shape[1] :], emb)
        shift, scale = moves.unsqueeze(1).chunk(2, dim=-1)
        return from_patches(
            self.linear(hidden * (1 + scale) + shift), latents.shape, self.patch_size, self.patch_frames
        )


class WeightedDiffusionHeadMixin(DiffusionHeadMixin):
    """The same with weights in the norm, under CogVideoX's names."""

    def _make_norm(self, hidden_size: int, moves: nn.Sequential) -> None:
        self.norm_final, self.adaLN_modulation = nn.LayerNorm(hidden_size, eps=self.epsilon), moves

    def _normed(self, hidden: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm_final(hidden), self.adaLN_modulation(emb)
