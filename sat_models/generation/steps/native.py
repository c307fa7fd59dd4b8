"""The C kernels of a decode step on a CPU (`native.c`, compiled when the package is installed).

With few rows torch reads a weight more slowly than these, above all bf16 on processors without bf16 units; so does its
attention for one query; and each small operator in between costs (`scripts/measure_kernels.py`). Without a C compiler
at installation there is no library, and decoding runs through torch's operators.

Tensors are contiguous and on the CPU: weights in fp32 or bf16, caches in either or in bytes (`mixins/cache_form.py`),
all others in fp32. With bf16 weights results are rounded to bf16. Nothing is checked here (`KernelStep` does). Results
go into `out`.

Legend: B rows, N heads, G key/value heads, H head dim (at most `MAX_HEAD_DIM`), R of it that turns, C columns of the
cache, K inputs, M outputs.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from mixins.cache_form import SCALE_BYTES
from mixins.rotary import RotaryRows
from sat_models.c_library import open_library

MAX_HEAD_DIM = 256
_FORMS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}  # of caches, as in the C file
_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_ARGUMENTS = {
    "token_rms_norm": [_POINTER] * 3 + [_FLOAT] + [_LONG] * 2 + [_INT],
    "token_product": [_POINTER] * 4 + [_LONG] * 3 + [_INT] * 2,
    "token_gated": [_POINTER] * 4 + [_LONG] * 3 + [_INT] * 2,
    "token_attend": [_POINTER] * 8 + [_LONG] * 8 + [_INT] * 4,
}


@functools.cache
def load() -> TokenKernels | None:
    """The kernels; None where they were not compiled."""
    library = open_library(__package__, "native", _ARGUMENTS)
    return None if library is None else TokenKernels(library)


class TokenKernels:
    """Calls the library with torch's number of threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._norm, self._product = library.token_rms_norm, library.token_product
        self._gated, self._attend = library.token_gated, library.token_attend

    def rms_norm(self, out: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> None:
        """x [B, K] -> [B, K]."""
        self._norm(out.data_ptr(), x.data_ptr(), weight.data_ptr(), epsilon, *x.shape, _is_half(weight))

    def product(self, out: Tensor, x: Tensor, weight: Tensor, residual: Tensor | None = None) -> None:
        """weight [M, K] times each row of x [B, K], plus residual [B, M], which may be `out` -> [B, M]."""
        self.product_with(weight)(out, x, residual)

    def product_with(self, weight: Tensor) -> Callable[[Tensor, Tensor, Tensor | None], None]:
        """`product` of a weight that stays where it is, for many calls."""
        run, address, size, half = self._product, weight.data_ptr(), tuple(weight.shape), _is_half(weight)

        def product(out: Tensor, x: Tensor, residual: Tensor | None = None) -> None:
            added = None if residual is None else residual.data_ptr()
            run(out.data_ptr(), x.data_ptr(), address, added, len(x), *size, half, torch.get_num_threads())

        return product

    def gated(self, out: Tensor, x: Tensor, gate: Tensor, up: Tensor) -> None:
        """silu(gate [M, K] x) times up [M, K] x, for each row of x [B, K] -> [B, M]."""
        self.gated_with(gate, up)(out, x)

    def gated_with(self, gate: Tensor, up: Tensor) -> Callable[[Tensor, Tensor], None]:
        """`gated` of weights that stay where they are, for many calls."""
        run, size, half = self._gated, tuple(gate.shape), _is_half(gate)
        first, second = gate.data_ptr(), up.data_ptr()

        def gated(out: Tensor, x: Tensor) -> None:
            run(out.data_ptr(), x.data_ptr(), first, second, len(x), *size, half, torch.get_num_threads())

        return gated

    def attend(
        self, out: Tensor, mixed: Tensor, turns: RotaryRows, keys: Tensor, values: Tensor, place: int,
        may_look: Tensor | None, scores: Tensor, *, neighbours: bool = False, half: bool = False,
    ) -> None:  # fmt: skip
        """Turn queries and keys, put the new keys and values at `place` of the cache, and attend to all up to there.

        Args:
            out: [B, N * H].
            mixed: [B, (N + 2 * G) * H], queries, keys and values.
            turns: [B, …, R] each.
            keys, values: [at least B, G, C, H], or in bytes.
            place: less than C.
            may_look: bool [B or 1, …, place + 1], one line after the other in any distance; None: all.
            scores: room for B * N * C numbers.
            neighbours: whether those turn together, and not the halves of what turns.
            half: round to bf16, as a model in bf16 does.
        """
        _, groups, columns, _ = keys.shape
        width = keys.shape[3] - (SCALE_BYTES if keys.dtype == torch.int8 else 0)
        mask, stride = None, 0
        if may_look is not None:
            mask, stride = may_look.data_ptr(), may_look.stride(0) if len(may_look) > 1 else 0
        self._attend(
            out.data_ptr(), mixed.data_ptr(), turns[0].data_ptr(), turns[1].data_ptr(), keys.data_ptr(),
            values.data_ptr(), mask, scores.data_ptr(), len(mixed), out.shape[1] // width, groups, width,
            turns[0].shape[-1], place, columns, stride, neighbours, _FORMS[keys.dtype], half, torch.get_num_threads(),
        )  # fmt: skip


def _is_half(stored: Tensor) -> bool:
    return stored.dtype == torch.bfloat16
