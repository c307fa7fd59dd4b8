"""Quantised linears on their own: numbers, slices, gradients, LoRA around them, and what is refused."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from mixins.lora import LoRASettings, apply_lora
from mixins.sat_compat import ColumnParallelLinear, RowParallelLinear
from sat_models import runtime
from sat_models.checkpoint.reshard import slice_for_rank, split_rules
from sat_models.errors import ConfigError, MissingPackageError
from sat_models.models.common import quantised
from sat_models.models.common.quantisation import DEFAULT_SKIP, Quantisation, linears_to_quantise
from sat_models.models.common.quantised import (
    QuantisedColumnLinear,
    QuantisedRowLinear,
    bitsandbytes,
    block_size,
    quantise,
    quantised_form,
    row_maxima,
)

pytest.importorskip("bitsandbytes")

ERROR = {8: 0.01, 4: 0.11}
"""Relative error of a product with normal weights; measured 0.006 and 0.096."""


def _weight(rows: int = 96, columns: int = 256, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02


def _column(rows: int = 96, columns: int = 256, **kwargs: object) -> ColumnParallelLinear:
    runtime.init_model_parallel(1)
    return _filled(ColumnParallelLinear(columns, rows, **kwargs), rows, columns)


def _row(rows: int = 96, columns: int = 256, **kwargs: object) -> RowParallelLinear:
    runtime.init_model_parallel(1)
    return _filled(RowParallelLinear(columns, rows, input_is_parallel=True, **kwargs), rows, columns)


def _filled(linear: nn.Module, rows: int, columns: int) -> nn.Module:
    linear.weight.data.copy_(_weight(rows, columns))
    if linear.bias is not None:
        linear.bias.data.normal_()
    return linear


def _quantised(linear: nn.Module, bits: int) -> nn.Module:
    layer = quantised_form(linear, bits)
    layer.fill(*quantise(linear.weight.detach(), bits, block=block_size(linear)))
    return layer


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "linear",
    [_column, lambda: _column(stride=3, bias=False), _row, lambda: _row(final_bias=False)],
    ids=["column", "strided", "row", "row-bias-inside"],
)
def test_products_are_near(bits, dtype, linear):
    linear = linear().to(dtype)
    layer = _quantised(linear, bits)
    assert isinstance(layer, QuantisedColumnLinear if hasattr(linear, "stride") else QuantisedRowLinear)
    x = torch.randn(2, 5, 256, dtype=dtype)
    wanted, given = linear(x).float(), layer(x).float()
    plain = wanted if linear.bias is None else wanted - linear.bias.float()
    assert given.dtype == torch.float32 and layer(x).dtype == dtype
    assert (given - wanted).norm() / plain.norm() < ERROR[bits] + (0.01 if dtype == torch.bfloat16 else 0)


def test_a_byte_of_scale_is_off_by_half_a_step_at_most():
    weight = torch.logspace(-5, 2, 64)[:, None] * _weight(64, 64).sign()
    _, codes = quantise(weight, 4, block=64)
    scales = 2 ** ((codes.float() - 191) / 8)
    assert ((scales[:, 0] / weight.abs().amax(dim=1)).log2().abs() <= 1 / 16 + 1e-4).all()


def test_zeros_stay_zeros():
    for bits in (8, 4):
        weight, scale = quantise(torch.zeros(32, 64), bits, block=64)
        layer = quantised_form(_column(32, 64, bias=False), bits)
        layer.fill(weight, scale)
        assert layer(torch.randn(3, 64)).eq(0).all()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("linear", [lambda: _column(stride=3), _row], ids=["column", "row"])
def test_a_slice_of_the_quantised_is_the_quantised_slice(bits, linear):
    linear = linear()
    layer, whole = _quantised(linear, bits), linear.weight.detach()
    rules, plain = split_rules(layer), split_rules(linear)["weight"]
    assert rules["weight"] == plain
    for rank in range(2):
        part = slice_for_rank(whole, plain, rank, 2)
        maxima = row_maxima(whole) if plain.dim == 1 else None
        weight, scale = quantise(part, bits, block=block_size(linear), maxima=maxima)
        assert weight.equal(slice_for_rank(layer.weight, rules["weight"], rank, 2))
        assert scale.equal(slice_for_rank(layer.quant_scale, rules["quant_scale"], rank, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [64, 32])
def test_runs_of_rows_do_not_show_in_the_result(block, dtype, monkeypatch):
    weight = (_weight(97, 320) * torch.logspace(-3, 2, 97)[:, None]).to(dtype)
    codes, state = bitsandbytes().functional.quantize_4bit(weight, blocksize=block, quant_type="nf4")
    whole = {bits: quantise(weight, bits, block=block) for bits in (8, 4)}
    assert whole[4][0].equal(codes.view(97, 160))
    assert whole[4][1].equal((state.absmax.log2() * 8 + 191).round().to(torch.uint8).view(97, -1))
    assert whole[8][0].equal((weight.float() * (127 / row_maxima(weight))[:, None]).round().to(torch.int8))
    for chunk in (1, 320, 7 * 320, 10**4):
        monkeypatch.setattr(quantised, "_CHUNK", chunk)
        assert row_maxima(weight).equal(whole[8][1])
        for bits, (values, scales) in whole.items():
            for maxima in (None, whole[8][1]) if bits == 8 else (None,):
                given = quantise(weight, bits, block=block, maxima=maxima)
                assert given[0].equal(values) and given[1].equal(scales), (bits, chunk)


@pytest.mark.parametrize("bits", [8, 4])
def test_gradients_reach_the_inputs(bits):
    linear = _column(bias=False)
    layer, x = _quantised(linear, bits), torch.randn(3, 256, requires_grad=True)
    with torch.inference_mode():
        layer(x)  # what it keeps must not be for inference alone
    layer(x).sum().backward()
    wanted = linear.weight.sum(dim=0)
    assert (x.grad - wanted).norm() / (wanted.norm() * 3**0.5) < ERROR[bits]


@pytest.mark.parametrize("bits", [8, 4])
def test_lora_goes_around_and_cannot_be_merged(bits):
    model = nn.ModuleDict({"column": _quantised(_column(), bits), "row": _quantised(_row(), bits)})
    x, before = torch.randn(2, 256), {}
    for name, layer in model.items():
        before[name] = layer(x)
    apply_lora(model, LoRASettings(targets=("*",), rank=2))
    for name, layer in model.items():
        assert layer(x).equal(before[name])
        layer.matrix_B[0].data.normal_()
        torch.testing.assert_close(layer(x), before[name] + x @ layer.delta().T)
        with pytest.raises(ValueError, match="cannot be merged into a quantised weight"):
            layer.merged_weight()


def test_what_is_chosen():
    model = nn.ModuleDict({"a": _column(), "odd": _row(96, 160), "mixins": nn.ModuleDict({"lm_head": _column()})})
    assert list(linears_to_quantise(model, Quantisation(bits=8))) == ["a", "odd"]
    assert list(linears_to_quantise(model, Quantisation(bits=8, skip=()))) == ["a", "odd", "mixins.lm_head"]
    model = nn.ModuleDict({"a": _column(), "odd": _row(96, 160), "b": _row(96, 192)})
    assert block_size(model["odd"]) is None and block_size(model["b"]) == 32 and block_size(model["a"]) == 64
    assert list(linears_to_quantise(model, Quantisation(bits=4))) == ["a", "b"]
    assert list(linears_to_quantise(model, Quantisation(bits=4, skip=(*DEFAULT_SKIP, "a*")))) == ["b"]
    with pytest.raises(ConfigError, match="'aa' fits no linear of this ModuleDict; did you mean a"):
        linears_to_quantise(model, Quantisation(bits=4, skip=("aa",)))
    with pytest.raises(ConfigError, match="nothing of this ModuleDict is left"):
        linears_to_quantise(model, Quantisation(bits=4, skip=("*",)))
    with pytest.raises(ConfigError, match="b, of 192 inputs, would be cut into 4 parts inside a block of 32"):
        linears_to_quantise(model, Quantisation(bits=4), 4)


def test_bad_settings_and_weights():
    for bits in (3, 16, "4"):
        with pytest.raises(ConfigError, match="allowed: 8 or 4"):
            Quantisation(bits=bits)
    with pytest.raises(ConfigError, match="say quant 8 or 4"):
        Quantisation.asked(None, ["a"])
    with pytest.raises(ConfigError, match="must be a list of patterns"):
        Quantisation(bits=4, skip="a*")
    for bits, wrong in ((8, float("nan")), (4, float("nan")), (4, 300.0), (8, float("inf"))):
        weight = _weight()
        weight[3, 5] = wrong
        with pytest.raises(ConfigError, match="cannot be quantised"):
            quantise(weight, bits, block=64)


def test_without_bitsandbytes_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingPackageError, match=r'needs the package \'bitsandbytes\'.*pip install "[\w-]+\[quant\]"'):
        bitsandbytes()
