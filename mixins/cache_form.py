"""How keys and values are kept: as the model computes them, in bf16, or in bytes.

Legend: H head dim.
"""

from __future__ import annotations

from enum import StrEnum

import torch
from torch import Tensor

SCALE_BYTES = 4
"""Behind the bytes of a vector stands its scale, an fp32 number."""


class CacheForm(StrEnum):
    """Of a vector of H numbers, the key or the value of one token in one head.

    - "model": as it is.
    - "bf16": rounded to bf16.
    - "int8": H steps of 1 / 127 of its largest magnitude, and a scale, in H + 4 bytes. Zeros mean zeros.
    """

    MODEL = "model"
    BF16 = "bf16"
    INT8 = "int8"

    def room(self, like: Tensor, *shape: int) -> Tensor:
        """Memory for vectors [*shape, H] that are kept, zeros, where `like` [..., H] lies."""
        dtype = {CacheForm.MODEL: like.dtype, CacheForm.BF16: torch.bfloat16, CacheForm.INT8: torch.int8}[self]
        width = like.shape[-1] + (SCALE_BYTES if self is CacheForm.INT8 else 0)
        return torch.zeros(*shape, width, dtype=dtype, device=like.device)

    def kept(self, x: Tensor) -> Tensor:
        """Vectors [..., H] as they are kept; numbers that are none stay none."""
        if self is not CacheForm.INT8:
            return x
        x = x.float()
        largest = x.abs().amax(dim=-1, keepdim=True)
        codes = (x * (127 / largest.clamp(min=1e-30))).round_().to(torch.int8)
        return torch.cat((codes, (largest / 127).view(torch.int8)), dim=-1)

    def read(self, stored: Tensor, dtype: torch.dtype) -> Tensor:
        """The vectors that are kept, [..., H] in `dtype`."""
        if self is not CacheForm.INT8:
            return stored.to(dtype)
        scales = stored[..., -SCALE_BYTES:].contiguous().view(torch.float32)
        return (stored[..., :-SCALE_BYTES] * scales).to(dtype)
