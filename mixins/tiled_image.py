"""The mixin "eva" of images that are cut into tiles, with learned vectors at the ends of their lines.

Legend: T tiles in rows x columns, n tokens on a side of a tile, V vision width, U = joined * joined * V, P tokens of an
image, D language width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.image_embedding import ProjectedImageMixin


class TiledImageMixin(ProjectedImageMixin):
    """The whole image at the size of a tile, a separator, and the tiles put together again, each line with a newline
    behind it (InternLM-XComposer2-4KHD, arXiv 2404.06512, section 3.1).

    Args:
        vit_model: pixels [T, 3, side, side] -> features [T, patches * patches, V].
        linear_proj: [P, U] -> [P, D], for tokens, newlines and separator alike.
        side: of a tile in pixels.
        joined: patches on either side that are joined to one token, row by row.
        width: V.
    """

    def __init__(self, vit_model: nn.Module, linear_proj: nn.Module, *, side: int, joined: int, width: int) -> None:
        super().__init__(vit_model, linear_proj)
        self.side, self.joined = side, joined
        self.newline = nn.Parameter(torch.zeros(1, 1, 1, joined * joined * width))
        self.separator = nn.Parameter(torch.zeros(1, 1, joined * joined * width))

    def encode_images(self, vision_image: Tensor | Sequence[Tensor]) -> list[Tensor]:
        """Pixels of images of sizes of their own, each [N, 3, rows * side, columns * side] -> [P, D] of each."""
        groups = (vision_image,) if isinstance(vision_image, Tensor) else vision_image
        return [self.linear_proj(self._lines(image)) for group in groups for image in group]

    def _lines(self, image: Tensor) -> Tensor:
        """[3, rows * side, columns * side] -> [P, U]."""
        side, (height, width) = self.side, image.shape[1:]
        if height % side or width % side:
            raise ValueError(f"the vision tower takes pictures in whole tiles of {side} px, got {width} x {height}")
        rows, columns = height // side, width // side
        whole = F.interpolate(image[None], size=(side, side), mode="bicubic", align_corners=False)
        tiles = image.view(3, rows, side, columns, side).permute(1, 3, 0, 2, 4).reshape(-1, 3, side, side)
        overview, *parts = self._joined_patches(self.vit_model(torch.cat((whole, tiles))))
        grid = torch.stack(parts).unflatten(0, (rows, columns)).transpose(1, 2)  # [rows, n, columns, n, U]
        lines = grid.flatten(2, 3).flatten(0, 1)
        return torch.cat((self._ended(overview), self.separator[0], self._ended(lines)))

    def _joined_patches(self, features: Tensor) -> Tensor:
        """[T, patches * patches, V] -> [T, n, n, U]."""
        n = math.isqrt(features.shape[1]) // self.joined
        return features.unflatten(1, (n, self.joined, n, self.joined)).transpose(2, 3).flatten(3)

    def _ended(self, lines: Tensor) -> Tensor:
        """[lines, tokens, U] -> [lines * (tokens + 1), U]."""
        ends = self.newline[0].expand(len(lines), -1, -1)
        return torch.cat((lines, ends), dim=1).flatten(0, 1)
