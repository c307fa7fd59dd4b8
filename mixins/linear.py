"""SAT's parallel linears as the language model's hooks run them: the same product, with less around it in inference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.sat_compat import ColumnParallelLinear, RowParallelLinear, mpu


def project(linear: nn.Module, x: Tensor) -> Tensor:
    """`linear(x)`, […, inputs] -> […, outputs].

    Without gradients and with the whole weight in this process, what SAT puts around the product (autograd functions
    that send nothing) is left out, and on a CPU one token in fp32 is multiplied as a vector, which reads the weight
    faster than a matrix product with one row. Wrapped, quantised and hooked linears are called as they are.
    """
    plain = type(linear) in (ColumnParallelLinear, RowParallelLinear) and linear.bias is None
    if torch.is_grad_enabled() or not plain or linear._forward_hooks or linear._forward_pre_hooks:
        return linear(x)
    if mpu.get_model_parallel_world_size() > 1:
        return linear(x)
    if x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() == x.shape[-1]:
        return torch.mv(linear.weight, x.reshape(-1)).view(*x.shape[:-1], -1)
    return F.linear(x, linear.weight)
