"""Gradients across model-parallel ranks, and heads of which several ranks hold copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mixins.heads import heads_of_rank
from mixins.sat_compat import mpu


class _LeaveRegion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / mpu.get_model_parallel_world_size()


def leave_model_parallel_region(hidden: Tensor) -> Tensor:
    """Take back that SAT's transformer "copies" its last hidden states to all ranks before it calls `final_forward`.

    That copy sums the gradients of all ranks. It is right for SAT's own tied head, where each rank has a part of the
    gradient. A `final_forward` that does without a head, or whose head is a `ColumnParallelLinear` (which sums by
    itself), has the whole gradient on each rank already, and all below it would get it as many times too large as there
    are ranks; twice so for a tower inside a model. Such a hook passes its hidden states through here first.
    """
    return hidden if mpu.get_model_parallel_world_size() == 1 else _LeaveRegion.apply(hidden)


@torch.no_grad()
def sum_copies(local: Tensor, parts: Sequence[int], *, dim: int = 0, first_only: bool = False) -> Tensor:
    """Each copy of a head becomes the sum of all that the ranks hold of it; other heads stay. All ranks call it.

    Args:
        local: this rank's heads of each part along `dim`, one part behind the other.
        parts: heads of each part over all ranks (see `heads_of_rank`).
        first_only: the first copy alone counts, so that all become what it is.
    """
    size, rank = mpu.get_model_parallel_world_size(), mpu.get_model_parallel_rank()
    if not any(heads % size for heads in parts):
        return local
    held = [heads_of_rank(heads, rank, size) for heads in parts]
    unit = local.shape[dim] // sum(map(len, held))
    made = list(local.split([unit * len(own) for own in held], dim))
    for number, (heads, own) in enumerate(zip(parts, held, strict=True)):
        if heads % size:
            made[number] = _sum_part(made[number], heads, own, dim, first_only=first_only)
    return torch.cat(made, dim)


def _sum_part(local: Tensor, heads: int, own: Sequence[int], dim: int, *, first_only: bool) -> Tensor:
    """`sum_copies` of one part, of which this rank holds the heads `own`."""
    size, rank = mpu.get_model_parallel_world_size(), mpu.get_model_parallel_rank()
    by_head = local.unflatten(dim, (len(own), -1)).movedim(dim, 0).contiguous()
    copies = size * len(own) // heads
    counted = [n for n in range(len(own)) if not first_only or (rank * len(own) + n) % copies == 0]
    shared = by_head.new_zeros(heads, *by_head.shape[1:])
    for n in counted:
        shared[own[n]] += by_head[n]
    dist.all_reduce(shared, group=mpu.get_model_parallel_group())
    return shared[list(own)].movedim(0, dim).flatten(dim, dim + 1)
