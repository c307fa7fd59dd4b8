"""The products of a decode step on a CPU, by what a linear holds: a bare weight in fp32 or bf16, or 8 or 4 bits.

Legend: B rows, K inputs, M outputs; inputs and results are fp32, rounded to bf16 where the model is in bf16.
"""

from __future__ import annotations

from typing import Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mixins.linear import is_whole
from mixins.sat_compat import RowParallelLinear
from sat_models.generation.steps.native import TokenKernels
from sat_models.models.common import quantised_kernels
from sat_models.models.common.quantised import QuantisedColumnLinear, QuantisedRowLinear, quantise
from sat_models.models.common.quantised_kernels import ByteInputs, QuantisedKernels, QuantisedWeight

_HEADS: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], QuantisedWeight]] = WeakKeyDictionary()
"""Output projections in 8 bits, with what tells whether the weight that they were made of is still the same."""


class Product(Protocol):
    """A linear."""

    outputs: int

    def into(self, out: Tensor, x: Tensor, residual: Tensor | None = None) -> None:
        """x [B, K] -> [B, M], plus residual [B, M], which may be `out`."""


class Gate(Protocol):
    """Two linears of one input."""

    outputs: int

    def into(self, out: Tensor, x: Tensor) -> None:
        """x [B, K] -> silu(gate x) times up x, [B, M]."""


class PlainProduct:
    """With a weight [M, K] in fp32 or bf16."""

    def __init__(self, weight: Tensor, kernels: TokenKernels) -> None:
        self.weight = weight.detach()  # so that this memory lives as long as its address is used
        self.outputs = len(weight)
        self.into = kernels.product_with(self.weight)  # see `Product`


class PlainGate:
    """With weights in fp32 or bf16."""

    def __init__(self, gate: PlainProduct, up: PlainProduct, kernels: TokenKernels) -> None:
        self._weights = gate.weight, up.weight  # so that this memory lives as long as its address is used
        self.outputs = up.outputs
        self.into = kernels.gated_with(*self._weights)  # see `Gate`


class ByteRooms:
    """Room for inputs as bytes, which all products of a step share."""

    def __init__(self) -> None:
        self._rooms: dict[tuple[int, int, int], ByteInputs] = {}

    def of(self, x: Tensor, weight: QuantisedWeight) -> ByteInputs:
        """For inputs like x [B, K] of that weight; the rooms of other numbers of rows are given up."""
        key = (*x.shape, weight.each)
        found = self._rooms.get(key)
        if found is None:
            self._rooms = {known: room for known, room in self._rooms.items() if known[0] == len(x)}
            found = self._rooms[key] = ByteInputs.room(*key)
        return found


class QuantisedProduct:
    """With a weight of 8 or 4 bits."""

    def __init__(self, weight: QuantisedWeight, kernels: QuantisedKernels, rooms: ByteRooms, half: bool) -> None:
        self.weight, self.outputs = weight, weight.outputs
        self._kernels, self._rooms, self._half = kernels, rooms, half

    def into(self, out: Tensor, x: Tensor, residual: Tensor | None = None) -> None:
        """See `Product`."""
        inputs = self._kernels.inputs(self._rooms.of(x, self.weight), x)
        self._kernels.product(out, inputs, self.weight, residual, half=self._half)


class QuantisedGate:
    """With weights of 8 or 4 bits, both alike."""

    def __init__(
        self, gate: QuantisedProduct, up: QuantisedProduct, kernels: QuantisedKernels, rooms: ByteRooms, half: bool
    ) -> None:
        self._gate, self._up, self.outputs = gate.weight, up.weight, up.outputs
        self._kernels, self._rooms, self._half = kernels, rooms, half

    def into(self, out: Tensor, x: Tensor) -> None:
        """See `Gate`."""
        inputs = self._kernels.inputs(self._rooms.of(x, self._up), x)
        self._kernels.gated(out, inputs, self._gate, self._up, half=self._half)


class BiasedProduct:
    """Another one with a bias [M]; in bf16 the sum is rounded before it is added, and after."""

    def __init__(self, product: Product, bias: Tensor) -> None:
        self._product, self.outputs = product, product.outputs
        self._bias = bias.detach().float()[None]

    def into(self, out: Tensor, x: Tensor, residual: Tensor | None = None) -> None:
        """See `Product`."""
        if residual is not None:
            raise ValueError("a linear with a bias has no place for a residual: SAT's row-parallel ones come without")
        if self._bias.shape[0] != len(x):
            self._bias = self._bias[:1].expand(len(x), -1).contiguous()
        self._product.into(out, x, self._bias)


class Products:
    """Makes the products of one step.

    Args:
        kernels: for bare weights.
        dtype: of the model, fp32 or bf16.
    """

    def __init__(self, kernels: TokenKernels, dtype: torch.dtype) -> None:
        self._kernels, self._dtype = kernels, dtype
        self._bytes, self._rooms = quantised_kernels.load(), ByteRooms()

    def of(self, linear: nn.Module) -> Product | None:
        """That of a linear; None where the kernels were not made for it."""
        found = self._without_bias(linear)
        if found is None or linear.bias is None:
            return found
        return BiasedProduct(found, linear.bias) if self._fits(linear.bias) else None

    def _without_bias(self, linear: nn.Module) -> Product | None:
        if is_whole(linear):
            return PlainProduct(linear.weight, self._kernels) if self._fits(linear.weight) else None
        if self._bytes is None or not is_whole_quantised(linear):
            return None
        stored = linear.stored
        if not (_is_readable(stored.codes) and _is_readable(stored.scales)):
            return None
        return self.quantised(stored)

    def _fits(self, stored: Tensor) -> bool:
        return type(stored) in (Tensor, nn.Parameter) and stored.dtype == self._dtype and _is_readable(stored)

    def quantised(self, weight: QuantisedWeight) -> QuantisedProduct | None:
        """That of a quantised weight; None without the kernels."""
        if self._bytes is None:
            return None
        return QuantisedProduct(weight, self._bytes, self._rooms, self._dtype == torch.bfloat16)

    def head(self, linear: nn.Module) -> Product | None:
        """That of the output projection: of 8 bits, made here and kept; as it is where it is no bare weight."""
        found = self.of(linear)
        if not isinstance(found, PlainProduct) or self._bytes is None:
            return found
        made_of = (found.weight.data_ptr(), linear.weight._version)
        if _HEADS.get(linear, (None,))[0] != made_of:
            _HEADS[linear] = made_of, QuantisedWeight(*quantise(found.weight, 8), 8, 0)
        return self.quantised(_HEADS[linear][1])

    def gate(self, gate: nn.Module, up: nn.Module) -> Gate | None:
        """Both of a gated MLP; None where the kernels were not made for them."""
        first, second = self.of(gate), self.of(up)
        if isinstance(first, PlainProduct) and isinstance(second, PlainProduct):
            return PlainGate(first, second, self._kernels)
        if not (isinstance(first, QuantisedProduct) and isinstance(second, QuantisedProduct)):
            return None
        if first.weight[2:] != second.weight[2:]:
            return None
        return QuantisedGate(first, second, self._bytes, self._rooms, self._dtype == torch.bfloat16)


def _is_readable(stored: Tensor) -> bool:
    return stored.device.type == "cpu" and stored.is_contiguous()


def is_whole_quantised(linear: nn.Module) -> bool:
    """True if it is one of the zoo's own, nobody listens, and all of it is here. One that is summed has no bias."""
    if type(linear) not in (QuantisedColumnLinear, QuantisedRowLinear):
        return False
    if isinstance(linear, RowParallelLinear):
        return linear.bias is None and linear.input_size_per_partition == linear.input_size
    return linear.output_size_per_partition == linear.output_size
