"""Rotary rotation as one Triton kernel; `rotate_triton` is None where Triton is not installed.

As `mixins.rotary.rotate_half_split`: fp32 inside, the input's dtype outside. A product and the sum behind it may be
rounded once here (Triton contracts them) and twice there, so the last bit of fp32 can differ. Inference only (it has no
backward), which is the only place where it is chosen.
"""

from __future__ import annotations

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

rotate_triton = None

if triton is not None:

    @triton.jit
    def _rotate_kernel(
        x_ptr, cos_ptr, sin_ptr, out_ptr, heads, tokens, row_batch_stride, HALF: tl.constexpr, BLOCK: tl.constexpr
    ):
        """One program rotates one (batch, head, token) row of contiguous x [B, N, S, 2 * HALF]."""
        row = tl.program_id(0)
        token = row % tokens
        batch = row // (heads * tokens)
        lane = tl.arange(0, BLOCK)
        inside = lane < HALF
        table = batch * row_batch_stride + token * 2 * HALF + lane
        cos = tl.load(cos_ptr + table, mask=inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + table + HALF, mask=inside, other=0.0).to(tl.float32)  # the half without a minus
        base = row.to(tl.int64) * (2 * HALF)
        first = tl.load(x_ptr + base + lane, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(x_ptr + base + HALF + lane, mask=inside, other=0.0).to(tl.float32)
        tl.store(out_ptr + base + lane, first * cos - second * sin, mask=inside)
        tl.store(out_ptr + base + HALF + lane, second * cos + first * sin, mask=inside)

    def rotate_triton(x_BNSH: Tensor, rows: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, N, S, H] and rows [B or 1, 1, S, H] -> rotated x, contiguous."""
        x = x_BNSH.contiguous()
        cos, sin = (row.contiguous() for row in rows)
        batch, heads, tokens, head_dim = x.shape
        out = torch.empty_like(x)
        row_batch_stride = 0 if cos.shape[0] == 1 else tokens * head_dim
        with torch.cuda.device_of(x):  # Triton launches on the thread's current device, wherever its arguments are
            _rotate_kernel[(batch * heads * tokens,)](
                x, cos, sin, out, heads, tokens, row_batch_stride,
                HALF=head_dim // 2, BLOCK=triton.next_power_of_2(head_dim // 2),
            )  # fmt: skip
        return out
