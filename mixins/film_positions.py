"""The mixin "pos_embed" of a film's transformer: where in time, height and width a patch lies.

Source: github.com/THUDM/CogVideo at v1.0 and e519ece, `sat/dit_video_concat.py`.
Legend: B batch, F, h, w a grid of patches (times, rows, columns), P = F * h * w, T text tokens, D hidden, N heads on
this rank, H head dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.grid_positions import sincos_1d
from mixins.patch_text_embedding import token_grid
from mixins.sat_compat import BaseMixin

Grid = tuple[int, int, int]
_THETA = 10000.0


def rotary_table(width: int, grid: Grid) -> tuple[Tensor, Tensor]:
    """Cosines and sines [P, width] in fp32: a quarter of the width turns with the time, three eighths each with row and
    column; neighbours are one pair."""
    angles = []
    for axis, (size, share) in enumerate(zip(grid, (width // 4, width * 3 // 8, width * 3 // 8), strict=True)):
        powers = torch.arange(0, share, 2).float() / share
        angle = torch.outer(torch.arange(size, dtype=torch.float32), 1 / _THETA**powers).repeat_interleave(2, dim=1)
        shape = [1, 1, 1, share]
        shape[axis] = size
        angles.append(angle.view(shape).expand(*grid, share))
    whole = torch.cat(angles, dim=-1).flatten(0, 2)
    return whole.cos(), whole.sin()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [..., P, H] with each pair (a, b) turned, (a cos - b sin, b cos + a sin), in the tables' dtype."""
    pairs = x.unflatten(-1, (-1, 2))
    quarter = torch.stack((-pairs[..., 1], pairs[..., 0]), dim=-1).flatten(-2)
    return x * cos + quarter * sin


class FilmTableMixin(BaseMixin):
    """A vector for each token, [1, T + P, D]: zeros for the text, and for a patch sines and cosines of its time (first
    quarter), column and row (three eighths each).

    It follows from the sizes; SAT's checkpoints carry it, diffusers' do not.

    Args:
        grid: of the longest film.
        hidden_size: D.
        text_length: T.
        patch_size: of the latents.
        spatial_scale: what rows and columns are divided by.
    """

    pos_embedding: Tensor

    def __init__(self, grid: Grid, hidden_size: int, text_length: int, patch_size: int, spatial_scale: float) -> None:
        super().__init__()
        self.grid, self.patch_size, self.spatial_scale, self.text_length = grid, patch_size, spatial_scale, text_length
        times, rows, columns = grid
        table = torch.empty(1, text_length + times * rows * columns, hidden_size)
        self.register_buffer("pos_embedding", table)
        if not table.is_meta:
            self.pos_embedding = self.compute_pos_embedding("cpu")

    def compute_pos_embedding(self, device: torch.device | str) -> Tensor:
        """The table in fp32. The places are divided in fp32, as in the original."""
        times, rows, columns = self.grid
        width = self.pos_embedding.shape[-1]
        place = lambda size: torch.arange(size, dtype=torch.float32) / self.spatial_scale  # noqa: E731
        time = sincos_1d(width // 4, torch.arange(times)).float()[:, None, None]
        column = sincos_1d(width * 3 // 8, place(columns)).float()[None, None]
        row = sincos_1d(width * 3 // 8, place(rows)).float()[None, :, None]
        parts = [part.expand(times, rows, columns, -1) for part in (time, column, row)]
        table = torch.cat(parts, dim=-1).flatten(0, 2)
        return torch.cat((table.new_zeros(self.text_length, width), table)).unsqueeze(0).to(device)

    def position_embedding_forward(self, position_ids: None, *, latents: Tensor, text: Tensor, **kw: Any) -> Tensor:
        """-> [1, T + P, D] of the first times of the table."""
        times, rows, columns = token_grid(latents.shape, self.patch_size)
        return self.pos_embedding[:, : text.shape[1] + times * rows * columns]


class FilmRotaryMixin(BaseMixin):
    """Queries and keys of patches are turned by their place; those of the text are not.

    Args:
        patch_size, patch_frames: of the latents.
    """

    def __init__(self, patch_size: int, patch_frames: int = 1) -> None:
        super().__init__()
        self.patch_size, self.patch_frames = patch_size, patch_frames
        self._last: tuple[tuple[object, ...], tuple[Tensor, Tensor]] | None = None

    def position_embedding_forward(self, position_ids: None, **kw: Any) -> Tensor | None:
        """Nothing is added to the tokens."""
        return None

    def attention_fn(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_fn: Any, **kw: Any) -> Tensor:
        """q, k, v [B, N, T + P, H], text first -> [B, N, T + P, H]; everything sees everything."""
        latents, text = kw["latents"], kw["text"]
        cos, sin = self._table(q.shape[-1], token_grid(latents.shape, self.patch_size, self.patch_frames), q.device)
        words = text.shape[1]
        q, k = (torch.cat((x[:, :, :words], turned(x[:, :, words:], cos, sin).to(x.dtype)), dim=2) for x in (q, k))
        return F.scaled_dot_product_attention(q, k, v)

    def _table(self, width: int, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        """`rotary_table`, made once for all layers and steps of a film."""
        wanted = (width, grid, device)
        if self._last is None or self._last[0] != wanted:
            cos, sin = rotary_table(width, grid)
            self._last = wanted, (cos.to(device), sin.to(device))
        return self._last[1]


class StoredFilmRotaryMixin(FilmRotaryMixin):
    """The same for the first CogVideoX, whose checkpoints carry the tables of the longest film. They follow from the
    sizes, and are made anew in fp32 whatever the weights are in: these here are for the files.

    Args:
        grid: of the longest film.
        head_dim: H.
        patch_size: of the latents.
        learned: a learned vector for each token besides, [1, T + P, D]: T and D. None: no such table.
    """

    freqs_sin: Tensor
    freqs_cos: Tensor

    def __init__(self, grid: Grid, head_dim: int, patch_size: int, *, learned: tuple[int, int] | None = None) -> None:
        super().__init__(patch_size)
        self.grid = grid
        times, rows, columns = grid
        patches = times * rows * columns
        table = None if learned is None else nn.Parameter(torch.zeros(1, learned[0] + patches, learned[1]))
        self.register_parameter("pos_embedding", table)
        empty = torch.empty(patches, head_dim)
        self.register_buffer("freqs_sin", empty)
        self.register_buffer("freqs_cos", empty.clone())
        if not empty.is_meta:
            self.freqs_cos, self.freqs_sin = rotary_table(head_dim, grid)

    def compute_freqs_sin(self, device: torch.device | str) -> Tensor:
        """The table in fp32."""
        return rotary_table(self.freqs_sin.shape[1], self.grid)[1].to(device)

    def compute_freqs_cos(self, device: torch.device | str) -> Tensor:
        """The table in fp32."""
        return rotary_table(self.freqs_cos.shape[1], self.grid)[0].to(device)

    def position_embedding_forward(
        self, position_ids: None, *, latents: Tensor, text: Tensor, **kw: Any
    ) -> Tensor | None:
        """Of the learned table, if there is one, the first times: [1, T + P, D]."""
        if self.pos_embedding is None:
            return None
        times, rows, columns = token_grid(latents.shape, self.patch_size)
        return self.pos_embedding[:, : text.shape[1] + times * rows * columns]
