"""Attention of the cells of an image grid to windows around them, in plain torch.

The originals do it with a CUDA extension (github.com/Sleepychord/Image-Local-Attention). Here each place of the window
is one shifted view of the grid: as many products of whole grids as the window has places, and no copy of the windows.

Legend: B batch, N heads, H and W of the grid that asks, h and w of the grid that is read, K places of a window, D head
dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

OUTSIDE = -10000.0
"""The score of a place that is not in the grid, as the originals have it."""


class Window(NamedTuple):
    """Rows and columns around a cell; both odd."""

    rows: int
    columns: int

    @property
    def places(self) -> int:
        """K, row by row."""
        return self.rows * self.columns


def window_scores(queries: Tensor, keys: Tensor, window: Window) -> Tensor:
    """Products of queries [B, N, H, W, D] with the keys around their cells: [B, N, H, W, K].

    Args:
        keys: [B, N, h, w, D]. In a grid that is coarser by a whole factor the window stands around the cell that covers
            the one that asks.
    """
    scale = queries.shape[2] // keys.shape[2]
    scores = torch.stack([(queries * view).sum(-1) for view in _views(keys, window, scale)], dim=-1)
    inside = torch.ones(1, 1, *keys.shape[2:4], 1, dtype=torch.bool, device=keys.device)
    there = torch.stack([view[..., 0] for view in _views(inside, window, scale)], dim=-1)
    return scores.masked_fill(~there, OUTSIDE)


def window_sum(weights: Tensor, values: Tensor, window: Window) -> Tensor:
    """Sums of the values [B, N, h, w, D] around each cell with weights [B, N, H, W, K]: [B, N, H, W, D]."""
    scale = weights.shape[2] // values.shape[2]
    total = torch.zeros(*weights.shape[:-1], values.shape[-1], dtype=values.dtype, device=values.device)
    for weight, view in zip(weights.unbind(-1), _views(values, window, scale), strict=True):
        total += weight.unsqueeze(-1) * view
    return total


def _views(grid: Tensor, window: Window, scale: int) -> Iterator[Tensor]:
    """The grid [B, N, h, w, D] moved to each place of the window, `scale` times as many cells on either side."""
    height, width = grid.shape[2:4]
    top, left = window.rows // 2, window.columns // 2
    padded = F.pad(grid, (0, 0, left, left, top, top))
    for row in range(window.rows):
        for column in range(window.columns):
            view = padded[:, :, row : row + height, column : column + width]
            yield view if scale == 1 else view.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
