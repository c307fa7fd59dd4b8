"""Gradients across model-parallel ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
