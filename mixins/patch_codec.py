"""The mixin "codec": images as codes, one for each square of pixels, and back.

A code is a few whole numbers, rounded from what a small network makes of the square ("finite scalar quantisation",
arXiv 2309.15505): no table of codes is learned that could collapse. A square's code depends on its own pixels alone;
the decoder looks at the squares around it, too (blocks of arXiv 2201.03545), and so smooths what the codes say roughly.

Legend: B images, H and W in squares, P pixels on a side of a square, L whole numbers of a code, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.sat_compat import BaseMixin


class PatchCodecMixin(BaseMixin):
    """No hook: a model that writes codes carries what they mean.

    Args:
        levels: how many values each of the L numbers has.
        width: D of the decoder; the encoder's layers are twice as wide.
        layers: blocks of the decoder.
        patch: P.
    """

    def __init__(self, levels: Sequence[int], width: int, layers: int, patch: int) -> None:
        super().__init__()
        self.levels, self.patch = tuple(levels), patch
        inner, pixels = 2 * width, 3 * patch * patch
        self.encoder = nn.Sequential(
            nn.Linear(pixels, inner), nn.GELU("tanh"), nn.LayerNorm(inner),
            nn.Linear(inner, inner), nn.GELU("tanh"), nn.LayerNorm(inner),
            nn.Linear(inner, len(self.levels)),
        )  # fmt: skip
        self.entry = nn.Linear(len(self.levels), width)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.exit = nn.Linear(width, pixels)

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H P, W P] in -1 … 1 -> codes [B, H, W]."""
        digits = (self._rounded(pixels) + 1) * self._halves(pixels.device)
        codes = torch.zeros(digits.shape[:-1], dtype=torch.long, device=pixels.device)
        for number, level in enumerate(self.levels):
            codes = codes * level + digits[..., number].round().long()
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, H, W] -> [B, 3, H P, W P], -1 … 1 and a little beyond."""
        digits = []
        for level in reversed(self.levels):
            digits.append(codes % level)
            codes = codes // level
        return self._painted(torch.stack(digits[::-1], dim=-1) / self._halves(codes.device) - 1)

    def reconstruct(self, pixels: Tensor) -> Tensor:
        """An image through its codes, with gradients past the rounding."""
        return self._painted(self._rounded(pixels))

    def _rounded(self, pixels: Tensor) -> Tensor:
        """-> [B, H, W, L] in -1 … 1."""
        squares = F.pixel_unshuffle(pixels, self.patch).movedim(1, -1)
        halves = self._halves(pixels.device)
        values = torch.sigmoid(self.encoder(squares).float()) * (2 * halves)
        return (values + (values.round() - values).detach()) / halves - 1

    def _painted(self, numbers: Tensor) -> Tensor:
        x = self.norm(self.blocks(self.entry(numbers.to(self.entry.weight.dtype))))
        return F.pixel_shuffle(self.exit(x).movedim(-1, 1), self.patch)

    def _halves(self, device: torch.device) -> Tensor:
        return torch.tensor([(level - 1) / 2 for level in self.levels], device=device)

    @property
    def never_run(self) -> tuple[nn.Module, ...]:
        """The model's own forward runs none of it."""
        return self.encoder, self.entry, self.blocks, self.norm, self.exit

    @property
    def codes(self) -> int:
        """How many there are."""
        return math.prod(self.levels)


class _Block(nn.Module):
    """[B, H, W, D] -> the same: a look at the squares around, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        near = self.near(x.movedim(-1, 1)).movedim(1, -1)
        return x + self.down(F.gelu(self.up(self.norm(near)), approximate="tanh"))
