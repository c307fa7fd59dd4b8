"""SAT's RMSNorm as one operator."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mixins.kept import remember
from mixins.sat_compat import RMSNorm as SATRMSNorm


class RMSNorm(SATRMSNorm):
    """`(weight * x / rms(x))`, multiplied in fp32 and then cast, as SAT's: bit for bit in fp32, bf16 and fp16."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[…, D] -> […, D]."""
        if not torch.is_grad_enabled():
            return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)
        output = _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)
        return remember(output, partial(_normed, epsilon=self.variance_epsilon), hidden_states, self.weight)


def _normed(x: Tensor, weight: Tensor, *, epsilon: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, epsilon)


class _RMSNorm(torch.autograd.Function):
    """torch's operator, which keeps its input alone; off GPUs torch's keeps two matrices more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return _normed(x, weight, epsilon=epsilon)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wide, scaled = x.float(), gradient.float()
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        inverse = inverse.add_(ctx.epsilon).rsqrt_()
        of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = (scaled * wide * inverse).flatten(0, -2).sum(0).to(weight.dtype)
        scaled = scaled * weight.float()
        along = (scaled * wide).mean(-1, keepdim=True).mul_(inverse.square())
        of_x = scaled.addcmul_(wide, along, value=-1).mul_(inverse).to(x.dtype)
        return of_x, of_weight, None
