"""The products of a decode step on a GPU in Triton: each reads its weight once for up to 32 inputs.

The norm in front of a product is part of it: each program adds up the squares while it reads its inputs, and multiplies
the sums by their root at the end (the norm's weight, which differs from number to number, goes onto the inputs). So is
what comes behind: a bias, SiLU and the second projection of a gated MLP, the residual. One input is multiplied by plain
threads, whose partial sums meet once, at the end; several by tensor cores, with the weights as the larger side of the
tile. Weights of 8 and 4 bits become numbers in registers and never lie in memory as such, as in gpt-fast and in Marlin
(arXiv 2408.11743). Sums are in fp32 and results are rounded once, where torch's operators round several times.

Legend: B inputs (rows), K numbers of each, M outputs.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from sat_models.generation.steps.triton_language import dot, dot_type, jit, power_of_two, tl
from sat_models.generation.steps.triton_tuning import Tiles, product_tiles
from sat_models.models.common.quantised_kernels import SCALE_OFFSET, SCALE_STEPS

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""What the 16 codes of nf4 mean (QLoRA, arXiv 2305.14314, appendix E)."""


class Weight(NamedTuple):
    """A linear on a GPU, contiguous.

    Attributes:
        stored: [M, K] in floats or int8, or uint8 [M, K / 2].
        scales: None, fp32 [M], or uint8 [M, K / block].
        block: numbers that share a scale in 4 bits; else 0.
        bias: [M] or None.
    """

    stored: Tensor
    scales: Tensor | None = None
    block: int = 0
    bias: Tensor | None = None

    @property
    def outputs(self) -> int:
        """M."""
        return len(self.stored)

    @property
    def bits(self) -> int:
        """Of a number."""
        return 4 if self.block else 8 * self.stored.element_size()


@jit
def _inputs(x_ptr, norm_ptr, k, row, rows, inputs, NORM: tl.constexpr):
    """Numbers `k` of inputs `row`, times the norm's weight, and as they are; k and row broadcast to a matrix."""
    inside = k < inputs
    bare = tl.load(x_ptr + row * inputs + k, mask=inside & (row < rows), other=0.0).to(tl.float32)
    x = bare
    if NORM:
        x = bare * tl.load(norm_ptr + k, mask=inside, other=0.0).to(tl.float32)
    return x, bare


@jit
def _multiplied(total, weight, x, KIND: tl.constexpr, IN: tl.constexpr, ROWS: tl.constexpr):
    """`total` and weight times x; one row is added up at the end."""
    if ROWS == 1:
        total += weight * x
    else:
        total = dot(weight, x, total, KIND, IN)
    return total


@jit
def _nf4(codes_ptr, scale_ptr, table_ptr, m, block, within, outputs, blocks, HALF: tl.constexpr, OFFSET: tl.constexpr,
         STEPS: tl.constexpr):  # fmt: skip
    """Even and odd numbers of a weight in 4 bits, fp32 [TILE_M, blocks of a tile, HALF]."""
    inside = (m < outputs)[:, None] & (block < blocks)[None, :]
    scales = tl.load(scale_ptr + m[:, None].to(tl.int64) * blocks + block[None, :], mask=inside, other=0)
    scale = tl.exp2((scales.to(tl.float32) - OFFSET) / STEPS)[:, :, None]
    place = m[:, None, None].to(tl.int64) * (blocks * HALF) + block[None, :, None] * HALF + within[None, None, :]
    codes = tl.load(codes_ptr + place, mask=inside[:, :, None], other=0x77).to(tl.int32)  # 7 means 0
    return tl.load(table_ptr + (codes >> 4)) * scale, tl.load(table_ptr + (codes & 15)) * scale


@jit
def _finish(value, more, squares, m, rows, inputs, outputs, epsilon, scale_ptr, up_scale_ptr, bias_ptr, residual_ptr,
            out_ptr, NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
            BYTES: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Sums [TILE_M, ROWS] -> results: norm, scale, bias, SiLU, residual."""
    row, inside_m = tl.arange(0, ROWS)[None, :], (m < outputs)[:, None]
    if NORM:
        root = tl.rsqrt(squares / inputs + epsilon)[None, :]
        value *= root
        more *= root
    if BYTES:
        value *= tl.load(scale_ptr + m, mask=m < outputs, other=0.0)[:, None] / 127
    if BIAS:
        value += tl.load(bias_ptr + m, mask=m < outputs, other=0.0).to(tl.float32)[:, None]
    if GATED:
        if BYTES:
            more *= tl.load(up_scale_ptr + m, mask=m < outputs, other=0.0)[:, None] / 127
        value = value * tl.sigmoid(value) * more
    place, inside = row * outputs + m[:, None], inside_m & (row < rows)
    if RESIDUAL:
        value += tl.load(residual_ptr + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + place, value.to(out_ptr.dtype.element_ty), mask=inside)


@jit
def _product_kernel(x_ptr, norm_ptr, weight_ptr, scale_ptr, up_ptr, up_scale_ptr, bias_ptr, residual_ptr, out_ptr,
                    rows, inputs, outputs, epsilon, NORM: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr,
                    RESIDUAL: tl.constexpr, BYTES: tl.constexpr, IN: tl.constexpr, ROWS: tl.constexpr,
                    STAGES: tl.constexpr, TILE_M: tl.constexpr, TILE_K: tl.constexpr):  # fmt: skip
    """TILE_M outputs of a weight in floats or int8."""
    m, row = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M), tl.arange(0, ROWS)[None, :]
    total = tl.zeros((TILE_M, TILE_K if ROWS == 1 else ROWS), tl.float32)
    more, squares = total, tl.zeros((1 if ROWS == 1 else TILE_K, TILE_K if ROWS == 1 else ROWS), tl.float32)
    for start in tl.range(0, inputs, TILE_K, num_stages=STAGES):
        k = start + tl.arange(0, TILE_K)
        x, bare = _inputs(x_ptr, norm_ptr, k[None, :] if ROWS == 1 else k[:, None], row, rows, inputs, NORM)
        squares += bare * bare
        place = m[:, None].to(tl.int64) * inputs + k[None, :]
        inside = (m < outputs)[:, None] & (k < inputs)[None, :]
        weight = tl.load(weight_ptr + place, mask=inside, other=0).to(tl.float32)
        total = _multiplied(total, weight, x, x_ptr.dtype.element_ty, IN, ROWS)
        if GATED:
            weight = tl.load(up_ptr + place, mask=inside, other=0).to(tl.float32)
            more = _multiplied(more, weight, x, x_ptr.dtype.element_ty, IN, ROWS)
    squares = tl.sum(squares, axis=1 if ROWS == 1 else 0)
    if ROWS == 1:
        total, more = tl.sum(total, axis=1)[:, None], tl.sum(more, axis=1)[:, None]
    _finish(total, more, squares, m, rows, inputs, outputs, epsilon, scale_ptr, up_scale_ptr, bias_ptr, residual_ptr,
            out_ptr, NORM, GATED, BIAS, RESIDUAL, BYTES, ROWS)  # fmt: skip


@jit
def _product_4_kernel(x_ptr, norm_ptr, weight_ptr, scale_ptr, up_ptr, up_scale_ptr, bias_ptr, residual_ptr, out_ptr,
                      table_ptr, rows, inputs, outputs, epsilon, NORM: tl.constexpr, GATED: tl.constexpr,
                      BIAS: tl.constexpr, RESIDUAL: tl.constexpr, HALF: tl.constexpr, OFFSET: tl.constexpr,
                      STEPS: tl.constexpr, IN: tl.constexpr, ROWS: tl.constexpr,
                      STAGES: tl.constexpr, TILE_M: tl.constexpr, BLOCKS: tl.constexpr):  # fmt: skip
    """TILE_M outputs of a weight in 4 bits, BLOCKS blocks of 2 * HALF numbers at a time."""
    m, row = tl.program_id(0) * TILE_M + tl.arange(0, TILE_M), tl.arange(0, ROWS)[None, :]
    within, blocks = tl.arange(0, HALF), inputs // (2 * HALF)
    if ROWS == 1:
        total = tl.zeros((TILE_M, BLOCKS, HALF), tl.float32)
        squares = tl.zeros((1, BLOCKS, HALF), tl.float32)
    else:
        total = tl.zeros((TILE_M, ROWS), tl.float32)
        squares = tl.zeros((BLOCKS * HALF, ROWS), tl.float32)
    more = total
    for start in tl.range(0, blocks, BLOCKS, num_stages=STAGES):
        block = start + tl.arange(0, BLOCKS)
        if ROWS == 1:
            k = (2 * (block[:, None] * HALF + within[None, :]))[None, :, :]
        else:
            k = (2 * (start * HALF + tl.arange(0, BLOCKS * HALF)))[:, None]
        number = tl.arange(0, 1)[None, None, :] if ROWS == 1 else row
        even, bare = _inputs(x_ptr, norm_ptr, k, number, rows, inputs, NORM)
        odd, bare_odd = _inputs(x_ptr, norm_ptr, k + 1, number, rows, inputs, NORM)
        squares += bare * bare + bare_odd * bare_odd
        first, second = _nf4(weight_ptr, scale_ptr, table_ptr, m, block, within, outputs, blocks, HALF, OFFSET, STEPS)
        total = _multiplied_4(total, first, second, even, odd, x_ptr.dtype.element_ty, IN, ROWS)
        if GATED:
            first, second = _nf4(
                up_ptr, up_scale_ptr, table_ptr, m, block, within, outputs, blocks, HALF, OFFSET, STEPS
            )
            more = _multiplied_4(more, first, second, even, odd, x_ptr.dtype.element_ty, IN, ROWS)
    if ROWS == 1:
        total, more = tl.sum(tl.sum(total, axis=2), axis=1)[:, None], tl.sum(tl.sum(more, axis=2), axis=1)[:, None]
        squares = tl.sum(tl.sum(squares, axis=2), axis=1)
    else:
        squares = tl.sum(squares, axis=0)
    _finish(total, more, squares, m, rows, inputs, outputs, epsilon, scale_ptr, up_scale_ptr, bias_ptr, residual_ptr,
            out_ptr, NORM, GATED, BIAS, RESIDUAL, False, ROWS)  # fmt: skip


@jit
def _multiplied_4(total, first, second, even, odd, KIND: tl.constexpr, IN: tl.constexpr, ROWS: tl.constexpr):
    """As `_multiplied`, of even and odd numbers."""
    if ROWS > 1:
        first = tl.reshape(first, (first.shape[0], first.shape[1] * first.shape[2]))
        second = tl.reshape(second, (second.shape[0], second.shape[1] * second.shape[2]))
    return _multiplied(_multiplied(total, first, even, KIND, IN, ROWS), second, odd, KIND, IN, ROWS)


def product(
    out: Tensor,
    x: Tensor,
    weight: Weight,
    *,
    up: Weight | None = None,
    norm: Tensor | None = None,
    epsilon: float = 0.0,
    residual: Tensor | None = None,
    tiles: Tiles | None = None,
) -> None:
    """`weight` times each row of x [B, K] -> out [B, M], all contiguous and in one dtype, B at most `MAX_ROWS`.

    Args:
        up: another weight of the same form: out is silu(weight x) times up x. Neither has a bias then.
        norm: x goes through an RMS norm with this weight [K] and `epsilon` first.
        residual: [B, M], added; it may be `out`.
        tiles: others than those of the table.
    """
    (rows, inputs), outputs = x.shape, weight.outputs
    tiles = tiles or product_tiles(weight.bits, rows)
    size = 1 if rows == 1 else power_of_two(rows, at_least=16)
    first, second = (x if part is None else part for part in (norm, residual))  # a pointer that nobody reads
    scales, bias = (x if part is None else part for part in (weight.scales, weight.bias))
    other = weight if up is None else up
    given = (
        x,
        first,
        weight.stored,
        scales,
        other.stored,
        x if other.scales is None else other.scales,
        bias,
        second,
        out,
    )
    how = {
        "NORM": norm is not None, "GATED": up is not None, "BIAS": weight.bias is not None,
        "RESIDUAL": residual is not None, "IN": dot_type(x), "ROWS": size, "TILE_M": tiles.outputs,
        "STAGES": tiles.stages, "num_warps": tiles.warps, "num_stages": tiles.stages,
    }  # fmt: skip
    grid = (-(-outputs // tiles.outputs),)
    with torch.cuda.device_of(x):  # Triton launches on the thread's current device, wherever its arguments are
        if weight.block:
            half = weight.block // 2
            _product_4_kernel[grid](
                *given, _nf4_table(x.device), rows, inputs, outputs, epsilon, HALF=half, OFFSET=SCALE_OFFSET,
                STEPS=SCALE_STEPS, BLOCKS=max(1, tiles.columns // half), **how,
            )  # fmt: skip
        else:
            _product_kernel[grid](
                *given, rows, inputs, outputs, epsilon, BYTES=weight.scales is not None, TILE_K=tiles.columns, **how
            )


@functools.cache
def _nf4_table(device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it outlives the forward that first needs it
        return torch.tensor(NF4, device=device)
