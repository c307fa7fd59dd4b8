"""SAT's parallel linears with weights of 8 or 4 bits: bitsandbytes' kernels inside, SAT's collectives outside.

- 8 bits: `weight` int8 [outputs, inputs], `quant_scale` fp32 [outputs]; they stand for `weight · quant_scale / 127`.
- 4 bits: `weight` uint8 [outputs, inputs / 2], two nf4 codes (QLoRA, arXiv 2305.14314) a byte; `quant_scale` uint8
  [outputs, inputs / block], code c for the scale 2^((c − 191) / 8).

Both can be cut like the weight itself, so a quantised checkpoint fits any model-parallel size and means the same in
all. That is why the scales of 4 bits are steps of a fixed logarithmic table (at most 4.4 % off, in a byte) and not, as
in QLoRA, quantised around a mean of the whole weight.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor, nn

from mixins.heads import heads_of
from mixins.sat_compat import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_model_parallel_region,
    gather_from_model_parallel_region,
    mpu,
    reduce_from_model_parallel_region,
)
from mixins.whole import WholeLinear
from sat_models.errors import ConfigError, MissingPackageError
from sat_models.models.common import quantised_kernels
from sat_models.models.common.quantised_kernels import SCALE_OFFSET, SCALE_STEPS, QuantisedWeight

SCALE = "quant_scale"
_BLOCKS = (64, 32)
_LARGEST = 2 ** ((255.5 - SCALE_OFFSET) / SCALE_STEPS)
_CHUNK = 2**20  # values of a weight in work at once: bitsandbytes takes up to 20 bytes for each on the CPU
_OUTLIER = 6.0  # LLM.int8 (arXiv 2208.07339): inputs beyond it are multiplied in fp16


class Rows(Protocol):
    """A weight [outputs, inputs] that is read by runs of rows: a tensor, or what makes them when it is sliced."""

    @property
    def shape(self) -> Sequence[int]:
        """Of the whole."""

    @property
    def dtype(self) -> torch.dtype:
        """Of what a slice gives."""

    @property
    def device(self) -> torch.device | str:
        """Where a slice lies."""

    def __getitem__(self, rows: slice) -> Tensor:
        """Those rows."""


def bitsandbytes() -> ModuleType:
    """The package, imported when it is first needed. Raises MissingPackageError."""
    try:
        import bitsandbytes as package
    except ImportError as error:
        raise MissingPackageError("bitsandbytes", "quant", "Quantisation (--quant)") from error
    return package


def block_size(linear: nn.Module) -> int | None:
    """Inputs that share a scale in 4 bits: 64 or 32, so that half of the inputs are whole blocks; None if neither."""
    cut = 2 if isinstance(linear, RowParallelLinear) or getattr(linear, "dim", 0) == 1 else 1
    return next((block for block in _BLOCKS if linear.input_size % (block * cut) == 0), None)


class _QuantisedLinear(nn.Module):
    """The common part of both parallel forms. The tensors start empty, on the device of the linear's weight."""

    def _take_over(self, linear: nn.Module, bits: int, *attributes: str) -> None:
        nn.Module.__init__(self)
        for name in attributes:
            setattr(self, name, getattr(linear, name))
        self.divisible_by = getattr(linear, "divisible_by", 0)
        self.register_parameter("bias", linear.bias)
        self.bits, self.block = bits, block_size(linear)
        self.register_buffer(SCALE, None)
        self.fill(*_empty(linear.weight, bits, self.block))

    def fill(self, weight: Tensor, scale: Tensor) -> None:
        """Take what `quantise` has made."""
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight.model_parallel = True
        self.quant_scale = scale

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x W^T + bias` on this rank, without any collective: [..., inputs] -> [..., outputs]."""
        if x.device.type == "cpu" and not torch.is_grad_enabled() and (kernels := quantised_kernels.load()):
            found = kernels.multiply(x, self.stored)
            return found if bias is None else found + bias
        multiply = _product_8 if self.bits == 8 else _product_4
        return multiply(self, x.contiguous(), bias)

    @property
    def stored(self) -> QuantisedWeight:
        """Codes and scales as the kernels for a CPU read them."""
        scale = self.quant_scale.float() if self.bits == 8 else self.quant_scale
        return QuantisedWeight(self.weight.detach(), scale, self.bits, self.block or 0)


class QuantisedColumnLinear(_QuantisedLinear, ColumnParallelLinear):
    """A `ColumnParallelLinear` with a quantised weight; all else is taken from `linear`."""

    def __init__(self, linear: ColumnParallelLinear, bits: int) -> None:
        names = ("input_size", "output_size", "output_size_per_partition", "stride", "gather_output")
        self._take_over(linear, bits, *names)
        self.head_layout = heads_of(linear)

    def forward(self, x: Tensor) -> Tensor:
        """As `ColumnParallelLinear.forward`."""
        output = self.product(copy_to_model_parallel_region(x), self.bias)
        return gather_from_model_parallel_region(output) if self.gather_output else output


class QuantisedRowLinear(_QuantisedLinear, RowParallelLinear):
    """A `RowParallelLinear` with a quantised weight; all else is taken from `linear`."""

    def __init__(self, linear: RowParallelLinear, bits: int) -> None:
        names = ("input_size", "output_size", "input_size_per_partition", "input_is_parallel", "final_bias")
        self._take_over(linear, bits, *names)

    def forward(self, x: Tensor) -> Tensor:
        """As `RowParallelLinear.forward`."""
        if not self.input_is_parallel:
            x = mpu.scatter_to_model_parallel_region(x)
        inside = None if self.bias is None or self.final_bias else self.bias / mpu.get_model_parallel_world_size()
        output = reduce_from_model_parallel_region(self.product(x, inside))
        return output + self.bias if self.final_bias and self.bias is not None else output


class QuantisedWholeLinear(_QuantisedLinear, WholeLinear):
    """A `WholeLinear` with a quantised weight."""

    def __init__(self, linear: WholeLinear, bits: int) -> None:
        self._take_over(linear, bits, "in_features", "out_features", "dim", "parts")

    def forward(self, x: Tensor) -> Tensor:
        """As `WholeLinear.forward`."""
        return self.product(x, self.bias)


def waits_for_host(module: nn.Module) -> bool:
    """True if its products on a GPU wait for the host, which looks in each for the outliers of LLM.int8."""
    return any(isinstance(part, _QuantisedLinear) and part.bits == 8 for part in module.modules())


def quantised_form(linear: nn.Module, bits: int) -> nn.Module:
    """A quantised linear in the place of `linear`, bias included, whose weight and scales are still to be filled."""
    if isinstance(linear, WholeLinear):
        return QuantisedWholeLinear(linear, bits)
    form = QuantisedColumnLinear if isinstance(linear, ColumnParallelLinear) else QuantisedRowLinear
    return form(linear, bits)


def quantise_linears(
    model: nn.Module,
    bits: int,
    *,
    in_8_bits: Sequence[str] = (),
    weight_of: Callable[[str], Tensor] | None = None,
    done: Callable[[str], None] | None = None,
) -> None:
    """Exchange the plain linears of a module for quantised ones, in place and one by one.

    Args:
        bits: 8 or 4.
        in_8_bits: shell patterns over names of linears that are never in 4 bits; nor are those whose inputs are no
            whole blocks.
        weight_of: gives the weight of a linear by its name; None: the linear has it.
        done: told the name of each that was quantised.

    Raises:
        MissingPackageError: bitsandbytes is not installed.
    """
    bitsandbytes()
    for name, linear in [(name, part) for name, part in model.named_modules() if type(part) is nn.Linear]:
        whole = WholeLinear.of(linear)
        own = 8 if any(fnmatchcase(name, pattern) for pattern in in_8_bits) or block_size(whole) is None else bits
        layer = quantised_form(whole, own)
        weight = linear.weight.detach() if weight_of is None else weight_of(name)
        layer.fill(*quantise(weight, own, block=block_size(whole)))
        model.set_submodule(name, layer)
        if done is not None:
            done(name)


def row_runs(rows: int, columns: int) -> Iterator[slice]:
    """A weight of this shape in runs of rows, so small that what is made of one on the way does not count."""
    step = max(1, _CHUNK // columns)
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def row_maxima(weight: Rows) -> Tensor:
    """Largest magnitude in each row of [outputs, inputs], fp32 [outputs]: the scales of 8 bits."""
    return torch.cat([_maxima(weight[run]) for run in row_runs(*weight.shape)])


def _maxima(values: Tensor) -> Tensor:
    return torch.maximum(values.amax(dim=1), -values.amin(dim=1)).float()


@torch.no_grad()
def quantise(
    weight: Rows, bits: int, *, block: int | None = None, maxima: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """A weight [outputs, inputs], or a rank's part of one, as (`weight`, `quant_scale`) of the table above.

    It is read run by run. A scale belongs to one row or to a part of one, so the runs do not show in the result.

    Args:
        block: of 4 bits.
        maxima: of 8 bits, `row_maxima` over all ranks; None takes those of `weight`.

    Raises:
        ConfigError: a weight that is no number, or too large for the scales.
    """
    stored, scales = _empty(weight, bits, block)
    for run in row_runs(*weight.shape):
        values = weight[run]
        if bits == 8:
            scales[run] = _maxima(values) if maxima is None else maxima[run]
            stored[run] = _codes_8(values, scales[run])
        else:
            stored[run], scales[run] = _codes_4(values, block)
    return stored, scales


def _empty(weight: Rows, bits: int, block: int | None) -> tuple[Tensor, Tensor]:
    """Memory for a quantised weight and its scales, where the weight lies."""
    rows, columns = weight.shape
    new = functools.partial(torch.empty, device=weight.device)
    if bits == 8:
        return new(rows, columns, dtype=torch.int8), new(rows, dtype=torch.float32)
    return new(rows, columns // 2, dtype=torch.uint8), new(rows, columns // block, dtype=torch.uint8)


def _codes_8(values: Tensor, scales: Tensor) -> Tensor:
    _check_range(scales, float("inf"))
    factor = 127.0
    return (values.float() * (factor / scales.clamp(min=1e-30))[:, None]).round_().to(torch.int8)


def _codes_4(values: Tensor, block: int) -> tuple[Tensor, Tensor]:
    packed, state = bitsandbytes().functional.quantize_4bit(values.contiguous(), blocksize=block, quant_type="nf4")
    _check_range(state.absmax, _LARGEST)
    steps = state.absmax.log2().mul_(SCALE_STEPS).add_(SCALE_OFFSET).round_().clamp_(0, 255)
    return packed.view(len(values), -1), steps.to(torch.uint8).view(len(values), -1)


def _check_range(maxima: Tensor, limit: float) -> None:
    largest = maxima.max().item()
    if not largest < limit:
        raise ConfigError(
            f"a weight of {largest:.3g} cannot be quantised (limit {limit:.3g}): the file is damaged, or name its "
            "linear in quant_skip"
        )


def _product_8(layer: _QuantisedLinear, x: Tensor, bias: Tensor | None) -> Tensor:
    package = bitsandbytes()
    state = package.MatmulLtState()
    state.CB, state.SCB, state.has_fp16_weights = layer.weight, layer.quant_scale.float(), False
    if x.device.type == "cpu":
        return package.matmul(x, layer.weight, state=state, bias=bias)
    half = package.matmul(
        x.half(), layer.weight, state=state, threshold=_OUTLIER, bias=None if bias is None else bias.half()
    )
    return half.to(x.dtype)


def _product_4(layer: _QuantisedLinear, x: Tensor, bias: Tensor | None) -> Tensor:
    functional = bitsandbytes().functional
    scales = layer.quant_scale.reshape(-1)
    table, ones, zero = _scale_table(scales.device, -(-len(scales) // 256))
    state = functional.QuantState(
        absmax=scales,
        shape=torch.Size((layer.weight.shape[0], x.shape[-1])),
        code=None,  # what nf4 means is known to the kernels
        blocksize=layer.block,
        quant_type="nf4",
        dtype=x.dtype,
        offset=zero,
        state2=functional.QuantState(absmax=ones, code=table, blocksize=256, dtype=torch.float32),
    )
    return bitsandbytes().matmul_4bit(x, layer.weight.reshape(-1, 1), state, bias=bias)


@functools.cache
def _scale_table(device: torch.device, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """The meaning of a byte of `quant_scale`, as the kernels look it up: table[code] · 1 + 0."""
    with torch.inference_mode(False):  # they outlive the forward that first needs them
        return (
            quantised_kernels.scale_table().to(device),
            torch.ones(groups, device=device),
            torch.zeros((), device=device),
        )
