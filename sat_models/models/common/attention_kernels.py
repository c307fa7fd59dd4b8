"""Causal attention of fp32 training on a CPU, through C (`attention_kernels.c`).

torch's fused kernel for CPUs takes a third of a LoRA step: its backward pass multiplies at half the speed of matrix
products. Without a C compiler at installation there is no library, and torch's does it; so it does on processors
without AVX-512, where these give the same and are slower.

Legend: B batch, N heads, S positions, H head dim.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sat_models.c_library import open_library

LANES = 16
"""A head dim is a multiple of it."""


class _Tensor(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("row", ctypes.c_long), ("head", ctypes.c_long), ("step", ctypes.c_long)]


_POINTER, _LONG = ctypes.c_void_p, ctypes.c_long
_SIZES = [_LONG] * 4 + [ctypes.c_float, ctypes.c_int, _POINTER]
_ARGUMENTS = {
    "attention_pays": [],
    "attention_forward": [_POINTER] * 5 + _SIZES,
    "attention_backward": [_POINTER] * 8 + _SIZES,
}


@functools.cache
def load() -> ctypes.CDLL | None:
    """The kernels; None where they were not compiled."""
    return open_library(__package__, "attention_kernels", _ARGUMENTS)


@functools.cache
def pays() -> bool:
    """True where the kernels are there and faster than torch's."""
    library = load()
    if library is None:
        return False
    library.attention_pays.restype = ctypes.c_int
    return bool(library.attention_pays())


def takes(q: Tensor, k: Tensor) -> bool:
    """True for what the kernels compute: fp32 on the CPU with gradients, as many keys as queries; or without memory,
    where activations are only counted. Not asked is whether `q` has a gradient: activation checkpointing gives one to
    what has none, and shall change no bit."""
    if not torch.is_grad_enabled() or q.shape != k.shape or q.shape[-1] % LANES:
        return False
    return q.device.type in ("cpu", "meta") and q.dtype == torch.float32 and pays()


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[B, N, S, H] each, fp32 -> [B, N, S, H]; each position sees itself and what is before it.

    Raises:
        MemoryError: no room for a head's scores.
    """
    return _CausalAttention.apply(q, k, v)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, sums = _empty(q), q.new_empty(q.shape[:3])
        q, k, v = map(_laid_out, (q, k, v))
        if not q.is_meta:
            _call("attention_forward", q.shape, _of(out), sums.data_ptr(), _of(q), _of(k), _of(v))
        ctx.save_for_backward(q, k, v, sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, sums = ctx.saved_tensors
        gradient = _laid_out(gradient)
        of_q, of_k, of_v = (_empty(x).zero_() for x in (q, k, v))
        gradients = (_of(x) for x in (of_q, of_k, of_v, gradient))
        _call("attention_backward", q.shape, *gradients, sums.data_ptr(), _of(q), _of(k), _of(v))
        return of_q, of_k, of_v


def _empty(like: Tensor) -> Tensor:
    """[B, N, S, H] whose heads lie side by side in a position, as the products around attention have them."""
    batch, heads, length, size = like.shape
    return like.new_empty(batch, length, heads, size).transpose(1, 2)


def _laid_out(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _of(x: Tensor) -> Any:
    return ctypes.byref(_Tensor(x.data_ptr(), *x.stride()[:3]))


def _call(name: str, shape: torch.Size, *tensors: Any) -> None:
    failed = ctypes.c_int(0)
    scale = shape[-1] ** -0.5
    getattr(load(), name)(*tensors, *shape, scale, torch.get_num_threads(), ctypes.byref(failed))
    if failed.value:
        raise MemoryError(f"no memory for the attention of {shape[2]} positions")
