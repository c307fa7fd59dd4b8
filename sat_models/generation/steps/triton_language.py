"""Triton where it is installed, and what of it the kernels of a decode step write their programs in.

torch's builds for GPUs bring Triton. Elsewhere kernels stay plain functions that nobody calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = tl = None


def jit(function: Callable[..., Any]) -> Any:
    """A kernel, or a part of one."""
    return function if triton is None else triton.jit(function)


@jit
def dot(left, right, total, KIND: tl.constexpr, IN: tl.constexpr):
    """`total` and the product of two matrices that are rounded to KIND and multiplied in IN (see `dot_type`)."""
    return tl.dot(left.to(KIND).to(IN), right.to(KIND).to(IN), total, input_precision="ieee")


def dot_type(x: torch.Tensor) -> Any:
    """In what numbers like those of `x` are multiplied: their own on a GPU. Triton's interpreter multiplies no bf16."""
    if x.device.type == "cpu" or x.dtype == torch.float32:
        return tl.float32
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[x.dtype]


def can_launch_on(device: torch.device) -> bool:
    """True on a GPU with Triton, and on a CPU where Triton interprets (TRITON_INTERPRET=1 before the first import)."""
    if triton is None:
        return False
    return device.type == "cuda" or (device.type == "cpu" and bool(triton.knobs.runtime.interpret))


def power_of_two(number: int, *, at_least: int = 1) -> int:
    """The next one, `number` included."""
    return max(at_least, 1 << (number - 1).bit_length())
