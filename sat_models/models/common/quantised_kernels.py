"""Products with weights of 8 or 4 bits on a CPU, through C (`quantised_kernels.c`).

Inputs are made integers, 32 numbers with a scale of their own, and multiplied as bytes: with few inputs a product takes
what reading its weight takes, with many (a prompt) a fraction of what it takes in fp32. An input's result does not
depend on the others, so an answer in a batch is that of one alone.

Legend: B inputs (rows), K numbers of each, M outputs.
"""

from __future__ import annotations

import ctypes
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from sat_models.c_library import open_library

SCALE_STEPS, SCALE_OFFSET = 8, 191
"""A scale of 4 bits: steps per doubling, and the code that means 1."""

_WIDE, _SHARED, _PANEL = 128, 32, 32  # as in the C file: what inputs are filled up to, share a scale; outputs at once
_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
_ARGUMENTS = {
    "quantised_most": [_INT],
    "quantised_inputs": [_POINTER] * 4 + [_LONG] * 2 + [_INT] * 2,
    "quantised_product": [_POINTER] * 7 + [_POINTER] + [_LONG] * 4 + [_INT] * 3,
    "quantised_gated": [_POINTER] * 9 + [_LONG] * 4 + [_INT] * 3,
    "quantised_has_panels": [],
    "quantised_panels": [_POINTER] * 8 + [_LONG] * 4 + [_INT] * 2,
}


@functools.cache
def load() -> QuantisedKernels | None:
    """The kernels; None where they were not compiled."""
    library = open_library(__package__, "quantised_kernels", _ARGUMENTS)
    return None if library is None else QuantisedKernels(library)


@functools.cache
def scale_table() -> Tensor:
    """The meaning of a byte of the scales of 4 bits, fp32 [256]."""
    with torch.inference_mode(False):
        return torch.exp2((torch.arange(256, dtype=torch.float32) - SCALE_OFFSET) / SCALE_STEPS)


class QuantisedWeight(NamedTuple):
    """A weight on the CPU, contiguous, as `quantised.py` describes it.

    Attributes:
        codes: int8 [M, K], or uint8 [M, K / 2].
        scales: fp32 [M], or uint8 [M, K / block].
        bits: 8 or 4.
        block: of 4 bits; 0 for 8 bits.
    """

    codes: Tensor
    scales: Tensor
    bits: int
    block: int

    @property
    def outputs(self) -> int:
        """M."""
        return self.codes.shape[0]

    @property
    def inputs(self) -> int:
        """K."""
        return self.codes.shape[1] * (1 if self.bits == 8 else 2)

    @property
    def each(self) -> int:
        """Numbers of an input that are added up as integers where it is read as it is stored."""
        return 4 if self.bits == 8 else 8


def _filled_up(inputs: int) -> int:
    return -(-inputs // _WIDE) * _WIDE


class ByteInputs(NamedTuple):
    """Inputs [B, K] as bytes, what is taken off the sums of their products, and scales: room that can be used again."""

    codes: Tensor
    less: Tensor
    scales: Tensor

    @classmethod
    def room(cls, rows: int, inputs: int, each: int) -> ByteInputs:
        """For so many rows of so many numbers, `each` of which are added up as integers."""
        width = _filled_up(inputs)
        sums = width // each
        return cls(
            torch.empty(rows, width, dtype=torch.int8, device="cpu"),
            torch.empty(rows, sums, dtype=torch.int32, device="cpu"),
            torch.empty(rows, sums, dtype=torch.float32, device="cpu"),
        )


class QuantisedKernels:
    """Calls the library with torch's number of threads. Nothing is checked; results go into `out`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._inputs, self._product = library.quantised_inputs, library.quantised_product
        self._gated, self._panels = library.quantised_gated, library.quantised_panels
        self._has_panels = library.quantised_has_panels
        self._has_panels.restype = _INT
        self.most = library.quantised_most
        self._table = scale_table()

    def inputs(self, room: ByteInputs, x: Tensor) -> ByteInputs:
        """x fp32 [B, K], as bytes."""
        each = room.codes.shape[1] // room.less.shape[1]
        self._inputs(*(part.data_ptr() for part in room), x.data_ptr(), *x.shape, each, torch.get_num_threads())
        return room

    def product(
        self, out: Tensor, x: ByteInputs, weight: QuantisedWeight, residual: Tensor | None = None, *, half: bool = False
    ) -> None:
        """Weight times each input, plus residual [B, M], which may be `out` -> fp32 [B, M]; `half` rounds to bf16."""
        self._product(
            out.data_ptr(), *(part.data_ptr() for part in x), weight.codes.data_ptr(), weight.scales.data_ptr(),
            self._table.data_ptr(), None if residual is None else residual.data_ptr(), len(out), weight.outputs,
            weight.inputs, weight.block, weight.bits, half, torch.get_num_threads(),
        )  # fmt: skip

    def gated(
        self, out: Tensor, x: ByteInputs, gate: QuantisedWeight, up: QuantisedWeight, *, half: bool = False
    ) -> None:
        """silu(gate x) times up x, for each input -> fp32 [B, M]."""
        self._gated(
            out.data_ptr(), *(part.data_ptr() for part in x), gate.codes.data_ptr(), gate.scales.data_ptr(),
            up.codes.data_ptr(), up.scales.data_ptr(), self._table.data_ptr(), len(out), gate.outputs, gate.inputs,
            gate.block, gate.bits, half, torch.get_num_threads(),
        )  # fmt: skip

    def multiply(self, x: Tensor, weight: QuantisedWeight) -> Tensor:
        """`x W^T`: […, S, K] -> […, S, M] in the dtype of x. No gradients.

        With S > 1 (prompts) the weight is laid out for many inputs, where the processor can. That adds up in another
        order, so the choice must not hang on how many rows there are besides.
        """
        rows = x.reshape(-1, x.shape[-1]).float().contiguous()
        found = rows.new_empty(len(rows), weight.outputs)
        if x.dim() > 1 and x.shape[-2] > 1 and self._has_panels():
            self._by_panels(found, rows, weight)
        else:
            self.product(found, self.inputs(ByteInputs.room(*rows.shape, weight.each), rows), weight)
        return found.to(x.dtype).view(*x.shape[:-1], -1)

    def _by_panels(self, out: Tensor, x: Tensor, weight: QuantisedWeight) -> None:
        inputs, threads = self.inputs(ByteInputs.room(*x.shape, _SHARED), x), torch.get_num_threads()
        room = torch.empty(threads, _filled_up(weight.inputs), _PANEL + 4, dtype=torch.uint8, device="cpu")
        self._panels(
            out.data_ptr(), *(part.data_ptr() for part in inputs), weight.codes.data_ptr(), weight.scales.data_ptr(),
            self._table.data_ptr(), room.data_ptr(), len(x), weight.outputs, weight.inputs, weight.block, weight.bits,
            threads,
        )  # fmt: skip
