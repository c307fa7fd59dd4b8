"""Low-rank adapters (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353) on SAT's parallel linears and on plain ones.

A wrapped linear gives `W x + scale · B A x`; W is frozen, A starts random and B at zero. Names are those of the
original checkpoints: `….original.weight`, `….matrix_A.{p}`, `….matrix_B.{p}`, one pair per block p of a strided weight
(three for QKV, in the order q, k, v); DoRA adds `….magnitude.{p}`. `scale = alpha / rank`; alpha is 1 by default, as
in the originals, so that a file of theirs means the same here.

How the matrices are divided over model-parallel ranks, and what is sent for them:

| linear | A | B | sent |
|---|---|---|---|
| column-parallel | whole | rows, as the weight's | backward: the gradient of `A x`, a few numbers per token |
| row-parallel | columns, as the weight's | whole | forward: `A x`, inside the base product's all-reduce |
| plain | whole | whole | nothing |

A linear that each rank keeps whole, because their number does not divide it, has the matrices of the parallel one that
it stands for.

So whole matrices get the same gradient on all ranks. SAT's own `lora2.py` never reduces the row-parallel term: its
ranks disagree, and its merged weight is not what was trained. The initial A depends on the seed and on the layer's name
alone, not on the number of ranks. With dropout, torch's generator must be in step on the ranks of one model.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.heads import heads_of
from mixins.lora_product import low_rank_linear
from mixins.lora_settings import LoRASettings, choose_linears
from mixins.sat_compat import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_model_parallel_region,
    gather_from_model_parallel_region,
    mpu,
    reduce_from_model_parallel_region,
)
from mixins.whole import WholeLinear

_PRODUCTS = (ColumnParallelLinear, RowParallelLinear, WholeLinear, nn.Linear)
"""Kinds that do nothing but multiply, where one process has all of the weight."""


def low_rank_product(matrices_A: Iterable[Tensor], matrices_B: Iterable[Tensor]) -> Tensor:
    """`B A`, one block of rows per pair, in fp32: [outputs, inputs]."""
    return torch.cat([b.float() @ a.float() for a, b in zip(matrices_A, matrices_B, strict=True)])


class LoRALinear(nn.Module):
    """A frozen linear with a trained low-rank update.

    Args:
        original: a SAT parallel linear, or `nn.Linear` or a subclass (a quantised one too, but not for DoRA).
        settings: rank, scale, dropout.
        name: the layer's name in the model; with the seed it decides the initial A.

    Raises:
        TypeError: another kind of layer.
        ValueError: DoRA where it cannot be.
    """

    def __init__(self, original: nn.Module, settings: LoRASettings, *, name: str) -> None:
        super().__init__()
        self.original = original.requires_grad_(False)
        self.settings, self.scale = settings, settings.scale
        self.dropout, self.enabled = nn.Dropout(settings.dropout), True
        self.kind, inputs, blocks = _layout(original)
        self.head_layout, self.divisible_by = heads_of(original), getattr(original, "divisible_by", 0)
        self.gathers = self.kind == "column" and original.gather_output
        weight = original.weight
        place = {"device": weight.device, "dtype": weight.dtype if weight.is_floating_point() else None}
        rows = (_initial_A(f"{name}.{p}", settings, inputs, self.kind == "row", place) for p in range(len(blocks)))
        self.matrix_A = nn.ParameterList(rows)
        self.matrix_B = nn.ParameterList(torch.zeros(block, settings.rank, **place) for block in blocks)
        self.magnitude = None
        if settings.use_dora:
            self.magnitude = nn.ParameterList(self._initial_magnitude(name, blocks))
        dims = {} if self.kind == "plain" else self.split_dims()
        for key, parameter in self.own_parameters():
            parameter.model_parallel = parameter.tensor_model_parallel = key in dims

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that this wrapper adds, by name relative to it."""
        return ((key, p) for key, p in self.named_parameters() if not key.startswith("original."))

    def split_dims(self) -> dict[str, int]:
        """Dimension along which a matrix is divided over model-parallel ranks, for those that are; beside a linear that
        is whole on each, over ranks that divide `divisible_by`."""
        dim = {"row": 1, "column": 0}.get(self.kind, getattr(self.original, "dim", None))
        if dim == 1:
            return {"matrix_A.0": 1}
        if dim == 0:
            divided = [key for key, _ in self.own_parameters() if not key.startswith("matrix_A.")]
            return dict.fromkeys(divided, 0)
        return {}

    def split_heads(self) -> dict[str, int]:
        """Heads over all ranks of what is divided by them: the rows of queries, keys and values."""
        if self.head_layout is None:
            return {}
        return {key: self.head_layout.parts[int(key.rpartition(".")[2])] for key in self.split_dims()}

    def forward(self, x: Tensor) -> Tensor:
        """[…, inputs] -> […, outputs], each in the layout of the original layer."""
        if not self.enabled:
            return self.original(x)
        if self._is_one_product():
            weight, bias = self.original.weight, self.original.bias
            return low_rank_linear(x, weight, bias, list(self.matrix_A), list(self.matrix_B), self.scale)
        if self.kind == "row":
            output, low = self._row_products(x)
        else:
            output, low = self.original(x), self._down(x)
            if self.kind == "column":
                low = copy_to_model_parallel_region(low)
        update = self._up(low)
        if self.gathers:
            update = gather_from_model_parallel_region(update)
        return output + update if self.magnitude is None else self._rescale(output, update)

    def delta(self) -> Tensor:
        """The update of this rank's weight, fp32, without DoRA's rescaling."""
        return self.scale * low_rank_product(self.matrix_A, self.matrix_B)

    def merged_weight(self) -> Tensor:
        """This rank's weight with the update in it, in the weight's dtype; with DoRA, all ranks must call it.

        Raises:
            ValueError: the weight is quantised.
        """
        if not self.original.weight.is_floating_point():
            raise ValueError("LoRA cannot be merged into a quantised weight; load the base model without quant")
        merged = self.original.weight.float() + self.delta()
        if self.magnitude is not None:
            merged = merged * (torch.cat(list(self.magnitude)).float() / self._row_norms())[:, None]
        return merged.to(self.original.weight.dtype)

    @property
    def weight(self) -> Tensor:
        """The merged weight, for code that multiplies by a plain linear's weight itself (dropout has no say there)."""
        return self.merged_weight() if self.enabled else self.original.weight

    def _is_one_product(self) -> bool:
        """True if nothing but the matrices stands beside the product, and all of it is in this process."""
        base = self.original
        plain = type(base) in _PRODUCTS and not any(p.requires_grad for p in base.parameters())
        whole = self.kind == "plain" or mpu.get_model_parallel_world_size() == 1
        drops = self.training and self.settings.dropout > 0
        hooked = base._forward_hooks or base._forward_pre_hooks
        return plain and whole and not drops and not hooked and self.magnitude is None

    def _down(self, x: Tensor) -> Tensor:
        matrices = list(self.matrix_A)
        return F.linear(self.dropout(x), matrices[0] if len(matrices) == 1 else torch.cat(matrices))

    def _up(self, low: Tensor) -> Tensor:
        low = low * self.scale
        parts = [F.linear(part, b) for part, b in zip(low.split(self.settings.rank, -1), self.matrix_B, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _row_products(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`W x + bias` and `A x`, summed over ranks by one all-reduce; as `RowParallelLinear.forward`."""
        base, size = self.original, mpu.get_model_parallel_world_size()
        if not base.input_is_parallel:
            x = mpu.scatter_to_model_parallel_region(x)
        bias_inside = None if base.bias is None or base.final_bias else base.bias / size
        multiply = getattr(base, "product", None)  # of a quantised linear
        output = multiply(x, bias_inside) if multiply else F.linear(x, base.weight, bias_inside)
        low = self._down(x)
        if size > 1:
            both = reduce_from_model_parallel_region(torch.cat((output, low), dim=-1))
            output, low = both.split((output.shape[-1], low.shape[-1]), dim=-1)
        return (output + base.bias if base.final_bias and base.bias is not None else output), low

    def _rescale(self, output: Tensor, update: Tensor) -> Tensor:
        """DoRA: everything but the bias times magnitude / row norm, the norm taken as a constant (section 4.3)."""
        factor = (torch.cat(list(self.magnitude)).float() / self._row_norms() - 1).to(output.dtype)
        product = output if self.original.bias is None else output - self.original.bias
        return output + update + factor * (product + update)

    @torch.no_grad()
    def _row_norms(self) -> Tensor:
        """Lengths of the rows of `W + scale · B A`, fp32, over the columns of all ranks."""
        squares = (self.original.weight.float() + self.delta()).square().sum(dim=1)
        return (reduce_from_model_parallel_region(squares) if self.kind == "row" else squares).sqrt()

    def _initial_magnitude(self, name: str, blocks: Sequence[int]) -> list[Tensor]:
        weight = self.original.weight
        if self.gathers or not weight.is_floating_point():
            raise ValueError(
                f"DoRA cannot adapt {name}: it gathers its output or is quantised. Leave it out of targets"
            )
        lengths = torch.empty_like(weight[:, 0]) if weight.is_meta else self._row_norms().to(weight.dtype)
        return [part.clone() for part in lengths.split(list(blocks))]


def _layout(layer: nn.Module) -> tuple[str, int, list[int]]:
    """Kind of a linear, its inputs over all ranks, and its outputs on this rank by block."""
    if isinstance(layer, ColumnParallelLinear):
        strides = [1] * layer.stride if isinstance(layer.stride, int) else list(layer.stride)
        unit = layer.output_size_per_partition // sum(strides)
        return "column", layer.input_size, [unit * stride for stride in strides]
    if isinstance(layer, RowParallelLinear):
        return "row", layer.input_size, [layer.output_size]
    if isinstance(layer, WholeLinear) and layer.dim == 0:
        unit = layer.out_features // sum(layer.parts)
        return "plain", layer.in_features, [unit * part for part in layer.parts]
    if isinstance(layer, nn.Linear):
        return "plain", layer.in_features, [layer.out_features]
    raise TypeError(f"LoRA adapts ColumnParallelLinear, RowParallelLinear and nn.Linear, not {type(layer).__name__}")


def _initial_A(name: str, settings: LoRASettings, inputs: int, divided: bool, place: dict[str, Any]) -> Tensor:
    """Uniform in ±1/sqrt(inputs), as the originals; this rank's columns if the matrix is divided."""
    size, rank = (mpu.get_model_parallel_world_size(), mpu.get_model_parallel_rank()) if divided else (1, 0)
    if place["device"].type == "meta":
        return torch.empty(settings.rank, inputs // size, **place)
    generator = torch.Generator().manual_seed(zlib.crc32(f"{settings.seed} {name}".encode()))
    bound = inputs**-0.5
    whole = torch.empty(settings.rank, inputs, dtype=torch.float32, device="cpu")
    whole.uniform_(-bound, bound, generator=generator)
    return whole.chunk(size, dim=1)[rank].to(**place, copy=True)


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The wrapped linears by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Inside, the wrapped linears of a model are those that they wrap."""
    layers = lora_layers(model).values()
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


def linear_names(model: nn.Module) -> list[str]:
    """Names of the linears that LoRA can adapt: not those that are wrapped already, or that no forward reads."""
    wrapped = {f"{name}.original" for name in lora_layers(model)}
    kinds = (ColumnParallelLinear, RowParallelLinear, nn.Linear)
    unread = {id(m) for owner in model.modules() for part in getattr(owner, "never_run", ()) for m in part.modules()}
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and name not in wrapped and id(module) not in unread
    ]


def apply_lora(model: nn.Module, settings: LoRASettings) -> list[str]:
    """Wrap the linears that `settings` mean, in place; their own weights are frozen, all else is left as it is.

    All ranks call it, after the weights are loaded (or on a meta model, to load weights that hold the matrices).

    Returns:
        The names of the wrapped linears.

    Raises:
        ValueError: a pattern or a layer number that fits nothing.
    """
    chosen = choose_linears(settings, linear_names(model), wrapped=lora_layers(model))
    for name in chosen:
        model.set_submodule(name, LoRALinear(model.get_submodule(name), settings, name=name))
    return chosen


def lora_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """This rank's LoRA matrices by name, and nothing else. `checkpoint.adapter` writes files that fit all ranks."""
    layers = lora_layers(model).items()
    return {f"{name}.{key}": p.detach() for name, layer in layers for key, p in layer.own_parameters()}
