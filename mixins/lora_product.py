"""The product of a frozen linear with low-rank matrices beside it, as one step of autograd.

Said with torch's operators, the update is a matrix of its own that is added, forward and backward, and the input is
kept. Here the update is added by the product that makes it, and an input that can be made again (`kept`) is not kept.

Legend: T tokens, I inputs, O outputs, r rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixins.kept import Remake, remake_of


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    matrices_A: Sequence[Tensor],
    matrices_B: Sequence[Tensor],
    scale: float,
) -> Tensor:
    """`x Wᵀ + bias`, plus `scale · x Aᵀ Bᵀ` for each block of the outputs.

    Args:
        x: […, I].
        weight: [O, I], without gradient, as `bias` [O].
        matrices_A: [r, I] each.
        matrices_B: [rows, r] each; their rows are O together.

    Returns:
        […, O].
    """
    return _LowRankLinear.apply(x, weight, bias, scale, remake_of(x), *matrices_A, *matrices_B)


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, remake: Remake, *matrices: Tensor
    ) -> Tensor:
        blocks = len(matrices) // 2
        rows = x.reshape(-1, x.shape[-1])
        output = F.linear(rows, weight, bias)
        low = F.linear(rows, torch.cat(matrices[:blocks])).mul_(scale)
        for part, into, b in _blocks(low, output, matrices[blocks:]):
            into.addmm_(part, b.t())
        ctx.scale, ctx.make, ctx.blocks = scale, remake.make, blocks
        ctx.save_for_backward(weight, low, *matrices, *remake.tensors)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weight, low, *others = ctx.saved_tensors
        matrices_A, matrices_B = others[: ctx.blocks], others[ctx.blocks : 2 * ctx.blocks]
        rows = gradient.reshape(-1, gradient.shape[-1])
        low_gradient = torch.empty_like(low)
        gradients_B = []
        for (part, of, b), (into, *_) in zip(
            _blocks(low, rows, matrices_B), _blocks(low_gradient, rows, matrices_B), strict=True
        ):
            torch.mm(of, b, out=into)
            gradients_B.append(of.t() @ part)
        low_gradient.mul_(ctx.scale)
        x = ctx.make(*others[2 * ctx.blocks :])
        gradients_A = (low_gradient.t() @ x.reshape(-1, x.shape[-1])).chunk(ctx.blocks)
        own = None
        if ctx.needs_input_grad[0]:
            own = (rows @ weight).addmm_(low_gradient, torch.cat(matrices_A)).view(x.shape)
        return own, None, None, None, None, *gradients_A, *gradients_B


def _blocks(low: Tensor, outputs: Tensor, matrices_B: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """By block: its columns of `low` [T, r], of `outputs` [T, rows], and its B."""
    parts = low.split([b.shape[1] for b in matrices_B], dim=1)
    return list(zip(parts, outputs.split([len(b) for b in matrices_B], dim=1), matrices_B, strict=True))
