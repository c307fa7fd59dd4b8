"""Attention of one query per head on a GPU in Triton, its keys split over many programs (flash-decoding, Dao and others
2023), with the rotation before it and the writing of the new key and value into the cache.

How many columns are used is read on the device, so a recorded launch serves every length: the columns in use are dealt
out evenly among the programs of a head. The first program of a head turns the new key, writes it and the new value
behind the last column, and begins with them; no program reads what another one writes. A second, small kernel adds up
what the programs found.

Legend: B rows, N query heads, G key/value heads, H head dim, R of it that turns, C columns of the cache, P positions of
the rotary table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixins.heads import HeadLayout
from sat_models.generation.steps.triton_language import dot, dot_type, jit, power_of_two, tl
from sat_models.generation.steps.triton_tuning import ATTENTION_WARPS, COLUMNS, splits


@jit
def _turned(head_ptr, lane, inside, cos_ptr, sin_ptr, H: tl.constexpr, R: tl.constexpr, NEIGHBOURS: tl.constexpr):
    """Numbers `lane` of heads, turned, fp32; cos and sin point at the rows of a position."""
    if NEIGHBOURS:
        partner, pair, first = lane ^ 1, lane // 2, lane % 2 == 0
    else:
        first = lane < R // 2
        partner = tl.where(first, lane + R // 2, lane - R // 2)
        pair = tl.where(first, lane, lane - R // 2)
    turns = lane < R
    x = tl.load(head_ptr + lane, mask=inside & (lane < H), other=0.0).to(tl.float32)
    y = tl.load(head_ptr + partner, mask=inside & turns, other=0.0).to(tl.float32)
    cos = tl.load(cos_ptr + pair, mask=turns, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + pair, mask=turns, other=0.0).to(tl.float32)
    return x * cos + y * tl.where(first, -sin, sin)


@jit
def _new_ones(mixed_ptr, lane, keys_ptr, values_ptr, write, cos_ptr, sin_ptr, N: tl.constexpr, G: tl.constexpr,
              H: tl.constexpr, R: tl.constexpr, NEIGHBOURS: tl.constexpr):  # fmt: skip
    """The new key and value [1, TILE_H] of a head as the cache holds them, written there if `write`."""
    inside = lane < H
    key = _turned(mixed_ptr + N * H, lane, inside, cos_ptr, sin_ptr, H, R, NEIGHBOURS)
    value = tl.load(mixed_ptr + (N + G) * H + lane, mask=inside, other=0.0)
    # Rounded as torch's rotation is, then as the cache is.
    key = key.to(mixed_ptr.dtype.element_ty).to(keys_ptr.dtype.element_ty)
    value = value.to(values_ptr.dtype.element_ty)
    written = lane < tl.where(write, H, 0)
    tl.store(keys_ptr + lane, key, mask=written)
    tl.store(values_ptr + lane, value, mask=written)
    return key.to(tl.float32), value.to(tl.float32)


@jit
def _seen(query, keys, values, inside, most, total, found, KIND: tl.constexpr, IN: tl.constexpr, ONE: tl.constexpr):
    """The state after some columns more: greatest score, sum of weights [TILE_N], weighted values [TILE_N, TILE_H]."""
    if ONE:
        scores = tl.sum(query * keys.to(tl.float32), axis=1)[None, :]
    else:
        scores = tl.zeros((query.shape[0], keys.shape[0]), tl.float32)
        scores = dot(query, tl.trans(keys), scores, KIND, IN)
    scores = tl.where(inside[None, :], scores, -float("inf"))
    greatest = tl.maximum(most, tl.max(scores, axis=1))
    shift = tl.where(greatest == -float("inf"), 0.0, greatest)  # nothing seen yet
    weights, faded = tl.exp2(scores - shift[:, None]), tl.exp2(most - shift)
    total = total * faded + tl.sum(weights, axis=1)
    found = found * faded[:, None]
    if ONE:
        found += tl.sum(tl.trans(weights) * values.to(tl.float32), axis=0)[None, :]
    else:
        found = dot(weights, values, found, KIND, IN)
    return greatest, total, found


@jit
def _attend_kernel(mixed_ptr, cos_ptr, sin_ptr, positions_ptr, length_ptr, keys_ptr, values_ptr, mask_ptr, out_ptr,
                   sums_ptr, mask_stride, columns, scale, N: tl.constexpr, G: tl.constexpr, H: tl.constexpr,
                   R: tl.constexpr, NEIGHBOURS: tl.constexpr, MASKED: tl.constexpr, IN: tl.constexpr,
                   SPLITS: tl.constexpr, TILE_N: tl.constexpr, TILE_H: tl.constexpr, TILE_C: tl.constexpr):  # fmt: skip
    """One split of the columns for one key/value head of one row and the queries that read it."""
    row, group, split = tl.program_id(0) // G, tl.program_id(0) % G, tl.program_id(1)
    length = tl.load(length_ptr).to(tl.int32)
    position = tl.load(positions_ptr + row)
    cos_ptr += position * (R // 2)
    sin_ptr += position * (R // 2)
    mixed_ptr += row * ((N + 2 * G) * H)
    cache = tl.program_id(0).to(tl.int64) * columns * H
    keys_ptr += cache
    values_ptr += cache
    each: tl.constexpr = N // G
    member, lane = tl.arange(0, TILE_N)[:, None], tl.arange(0, TILE_H)[None, :]
    heads = mixed_ptr + (group * each + member) * H
    query = _turned(heads, lane, member < each, cos_ptr, sin_ptr, H, R, NEIGHBOURS)
    query = query.to(mixed_ptr.dtype.element_ty).to(tl.float32) * scale
    new = length.to(tl.int64) * H
    key, value = _new_ones(mixed_ptr + group * H, lane, keys_ptr + new, values_ptr + new, split == 0, cos_ptr, sin_ptr,
                           N, G, H, R, NEIGHBOURS)  # fmt: skip
    looks = split == 0
    if MASKED:
        looks = looks & (tl.load(mask_ptr + row * mask_stride + length) != 0)
    most = tl.where(looks, tl.sum(query * key, axis=1), -float("inf"))
    total = tl.where(looks, 1.0, 0.0) + tl.zeros((TILE_N,), tl.float32)
    found = tl.where(looks, value, 0.0) + tl.zeros((TILE_N, TILE_H), tl.float32)
    span = tl.cdiv(tl.cdiv(length, TILE_C), SPLITS) * TILE_C
    stop = tl.minimum(split * span + span, length)
    for start in range(split * span, stop, TILE_C):
        column = start + tl.arange(0, TILE_C)
        inside = column < stop
        if MASKED:
            inside = inside & (tl.load(mask_ptr + row * mask_stride + column, mask=inside, other=0) != 0)
        place, whole = column[:, None] * H + lane, (column < stop)[:, None] & (lane < H)
        keys = tl.load(keys_ptr + place, mask=whole, other=0.0)
        values = tl.load(values_ptr + place, mask=whole, other=0.0)
        most, total, found = _seen(
            query, keys, values, inside, most, total, found, keys_ptr.dtype.element_ty, IN, each == 1
        )
    head = row * N + group * each + member  # [TILE_N, 1]
    inside_n = member < each
    if SPLITS == 1:
        found = (found / total[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + head * H + lane, found, mask=inside_n & (lane < H))
    else:
        part = head * SPLITS + split
        tl.store(out_ptr + part * H + lane, found, mask=inside_n & (lane < H))
        tl.store(sums_ptr + 2 * part, most[:, None], mask=inside_n)
        tl.store(sums_ptr + 2 * part + 1, total[:, None], mask=inside_n)


@jit
def _join_kernel(parts_ptr, sums_ptr, out_ptr, H: tl.constexpr, SPLITS: tl.constexpr, TILE_H: tl.constexpr):
    """What the splits of one head found, as one."""
    head, split = tl.program_id(0), tl.arange(0, SPLITS)
    most = tl.load(sums_ptr + 2 * (head * SPLITS + split))
    total = tl.load(sums_ptr + 2 * (head * SPLITS + split) + 1)
    faded = tl.exp2(most - tl.max(most, axis=0))
    lane = tl.arange(0, TILE_H)
    place = (head * SPLITS + split)[:, None] * H + lane[None, :]
    found = tl.load(parts_ptr + place, mask=(lane < H)[None, :], other=0.0)
    found = tl.sum(found * faded[:, None], axis=0) / tl.sum(total * faded, axis=0)
    tl.store(out_ptr + head * H + lane, found.to(out_ptr.dtype.element_ty), mask=lane < H)


def parts_room(rows: int, heads: HeadLayout, columns: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Room for what the splits find: values [B, N, splits, H] and their sums; None where there is one split."""
    count = splits(rows * heads.num_kv_heads, columns)
    if count == 1:
        return None
    shape = (rows, heads.num_heads, count)
    return torch.empty(*shape, heads.head_dim, device=device), torch.empty(*shape, 2, device=device)


def attend(
    out: Tensor,
    mixed: Tensor,
    heads: HeadLayout,
    table: tuple[Tensor, Tensor],
    positions: Tensor,
    length: Tensor,
    keys: Tensor,
    values: Tensor,
    parts: tuple[Tensor, Tensor] | None,
    may_look: Tensor | None = None,
) -> None:
    """Turn queries and keys, put new keys and values behind the columns in use, and attend to all up to there.

    All contiguous; what lies on the device may change from launch to launch of a recording.

    Args:
        out: [B, N * H], the dtype of `mixed`.
        mixed: [B, (N + 2 * G) * H], queries, keys and values.
        heads: how a row is cut.
        table: cos and sin [P, R / 2].
        positions: [B], less than P.
        length: [1], columns in use, less than C.
        keys, values: [at least B, G, C, H], in floats.
        parts: as `parts_room` gives for B and C.
        may_look: [B or 1, at least length + 1], bool; None: all.
    """
    rows, columns, each = len(mixed), keys.shape[2], heads.group
    count = 1 if parts is None else parts[0].shape[2]
    found, sums = (out, out) if parts is None else parts
    tile_h = power_of_two(heads.head_dim, at_least=16)
    stride = may_look.stride(0) if may_look is not None and len(may_look) > 1 else 0
    mask = mixed if may_look is None else may_look.view(torch.uint8)
    with torch.cuda.device_of(mixed):
        _attend_kernel[rows * heads.num_kv_heads, count](
            mixed, *table, positions, length, keys, values, mask, found, sums, stride, columns,
            heads.head_dim**-0.5 * 1.4426950408889634,  # powers of two, not of e
            N=heads.num_heads, G=heads.num_kv_heads, H=heads.head_dim, R=heads.rotary_dim, NEIGHBOURS=heads.interleaved,
            MASKED=may_look is not None, IN=dot_type(keys), SPLITS=count,
            TILE_N=1 if each == 1 else power_of_two(each, at_least=16), TILE_H=tile_h, TILE_C=COLUMNS,
            num_warps=ATTENTION_WARPS,
        )  # fmt: skip
        if parts is not None:
            _join_kernel[(rows * heads.num_heads,)](found, sums, out, H=heads.head_dim, SPLITS=count, TILE_H=tile_h)
