"""The mixin "patch_embed" of a diffusion transformer: text tokens, and patches of the latents behind them.

Sources: github.com/THUDM/CogView3 at d450a74, `sat/dit.py`; github.com/THUDM/CogVideo at v1.0 and e519ece,
`sat/dit_video_concat.py`.
Legend: B batch, F frames of a film's latents, C channels, h and w of the latents, p side of a patch, o its frames, P
patches, T text tokens, D hidden, E text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixins.sat_compat import BaseMixin


def token_grid(shape: Sequence[int], side: int, frames: int = 1) -> tuple[int, int, int]:
    """Patches in time, from top to bottom and from left to right, of latents [B, C, h, w] or [B, F, C, h, w]."""
    times = shape[1] // frames if len(shape) == 5 else 1
    return times, shape[-2] // side, shape[-1] // side


def to_patches(latents: Tensor, side: int, frames: int = 1) -> Tensor:
    """[B, C, h, w] or [B, F, C, h, w] -> [B, P, C * o * p * p], time by time and row by row; p divides h and w, o
    divides F."""
    film = latents if latents.dim() == 5 else latents.unsqueeze(1)
    cut = film.unflatten(-1, (-1, side)).unflatten(-3, (-1, side)).unflatten(1, (-1, frames))
    return cut.permute(0, 1, 4, 6, 3, 2, 5, 7).flatten(4).flatten(1, 3)  # of B, times, o, C, rows, p, columns, p


def from_patches(patches: Tensor, shape: Sequence[int], side: int, frames: int = 1) -> Tensor:
    """The inverse of `to_patches` for latents of a shape; the number of channels is that of the patches."""
    grid = token_grid(shape, side, frames)
    cut = patches.unflatten(-1, (-1, frames, side, side)).unflatten(1, grid)  # B, times, rows, columns, C, o, p, p
    film = cut.permute(0, 1, 5, 4, 2, 6, 3, 7).flatten(6).flatten(4, 5).flatten(1, 2)
    return film if len(shape) == 5 else film.squeeze(1)


class PatchTextEmbeddingMixin(BaseMixin):
    """Latents and the text encoder's output, each through a linear of its own, as one sequence.

    Args:
        in_channels: C.
        hidden_size: D.
        patch_size: p.
        text_hidden_size: E.
        patch_frames: o.
    """

    def __init__(
        self, in_channels: int, hidden_size: int, patch_size: int, text_hidden_size: int, *, patch_frames: int = 1
    ) -> None:
        super().__init__()
        self.patch_size, self.patch_frames = patch_size, patch_frames
        self.proj = self._projection(in_channels, hidden_size)
        self.text_proj = nn.Linear(text_hidden_size, hidden_size)

    def _projection(self, in_channels: int, hidden_size: int) -> nn.Module:
        return nn.Linear(in_channels * self.patch_frames * self.patch_size**2, hidden_size)

    def word_embedding_forward(self, input_ids: Tensor, *, latents: Tensor, text: Tensor, **kw: Any) -> Tensor:
        """latents as `to_patches` takes them and text [B, T, E] -> [B, T + P, D]; `input_ids` only counts the batch for
        SAT."""
        return torch.cat((self.text_proj(text), self._patches(latents)), dim=1)

    def _patches(self, latents: Tensor) -> Tensor:
        return self.proj(to_patches(latents, self.patch_size, self.patch_frames))


class ConvolvedPatchTextEmbeddingMixin(PatchTextEmbeddingMixin):
    """The same with a convolution over each frame of a film, as the first CogVideoX has it; patches of one frame."""

    def _projection(self, in_channels: int, hidden_size: int) -> nn.Module:
        return nn.Conv2d(in_channels, hidden_size, self.patch_size, stride=self.patch_size)

    def _patches(self, latents: Tensor) -> Tensor:
        maps = self.proj(latents.flatten(0, 1)).flatten(2).transpose(1, 2)  # B * F, P of a frame, D
        return maps.unflatten(0, latents.shape[:2]).flatten(1, 2)
