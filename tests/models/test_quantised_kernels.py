"""Products with weights of 8 and 4 bits on a CPU: held against the same numbers computed one by one in fp64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mixins.sat_compat import ColumnParallelLinear
from sat_models import runtime
from sat_models.models.common import quantised_kernels
from sat_models.models.common.quantised import quantise, quantised_form
from sat_models.models.common.quantised_kernels import ByteInputs, QuantisedKernels, QuantisedWeight, load

NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302, 0.2461123,
    0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
SIZES = [(7, 64), (33, 192), (64, 768), (50, 1344), (5, 2048)]
FORMS = [(8, 0), (4, 64), (4, 32)]


@pytest.fixture(scope="module")
def kernels() -> QuantisedKernels:
    loaded = load()
    assert loaded is not None, "the C kernels were not compiled"
    return loaded


@pytest.fixture(params=[2, 1, 0], ids=["VNNI", "AVX2", "plain"])
def form(request: pytest.FixtureRequest, kernels: QuantisedKernels) -> Iterator[QuantisedKernels]:
    """All forms of a product up to what this processor has."""
    kernels.most(request.param)
    yield kernels
    kernels.most(2)


def made(outputs: int, inputs: int, bits: int, block: int, seed: int = 0) -> QuantisedWeight:
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) * 0.05
    codes, scales = quantise(weight, bits, block=block or None)
    return QuantisedWeight(codes, scales, bits, block)


def meaning(weight: QuantisedWeight, *, in_steps: bool) -> Tensor:
    """The numbers of a weight, fp64 [M, K]; `in_steps` takes the values of nf4 in steps of 1 / 127, as bytes are."""
    if weight.bits == 8:
        return weight.codes.double() * (weight.scales.double() / 127)[:, None]
    values = torch.tensor(NF4, dtype=torch.float64)
    values = (values * 127).round() / 127 if in_steps else values
    both = torch.stack((values[(weight.codes >> 4).long()], values[(weight.codes & 15).long()]), dim=-1).flatten(1)
    return both * torch.exp2((weight.scales.double() - 191) / 8).repeat_interleave(weight.block, dim=1)


def in_bytes(x: Tensor) -> Tensor:
    """Inputs as bytes mean them: 32 at a time share a scale."""
    width = -(-x.shape[1] // 32) * 32
    parts = torch.nn.functional.pad(x, (0, width - x.shape[1])).unflatten(1, (-1, 32))
    largest = parts.abs().amax(dim=-1, keepdim=True)
    steps = (parts * (127 / largest.clamp(min=1e-30))).round()
    return (steps.double() * (largest.double() / 127)).flatten(1)[:, : x.shape[1]]


def drawn(rows: int, inputs: int) -> Tensor:
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows))
    x[:, inputs // 2] = 30.0  # an outlier costs its own 32 their precision, not the others
    return x


def product(kernels: QuantisedKernels, x: Tensor, weight: QuantisedWeight, **more: object) -> Tensor:
    out = torch.full((len(x), weight.outputs), float("nan"))
    kernels.product(out, kernels.inputs(ByteInputs.room(*x.shape, weight.each), x), weight, **more)
    return out


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 35])
@pytest.mark.parametrize(("bits", "block"), FORMS)
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_is_what_the_numbers_mean(
    form: QuantisedKernels, outputs: int, inputs: int, bits: int, block: int, rows: int
) -> None:
    inputs += 5 if bits == 8 else 0  # any width there; whole blocks in 4 bits
    weight, x = made(outputs, inputs, bits, block), drawn(rows, inputs)
    wanted = in_bytes(x) @ meaning(weight, in_steps=True).T
    assert ((product(form, x, weight) - wanted).norm() / wanted.norm()).item() < 1e-6
    exact = x.double() @ meaning(weight, in_steps=False).T
    assert ((wanted - exact).norm() / exact.norm()).item() < 0.05  # 32 bytes with an outlier among them


@pytest.mark.parametrize("rows", [2, 6, 40, 61, 300])
@pytest.mark.parametrize(("bits", "block"), FORMS)
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_many_inputs_mean_the_same(
    form: QuantisedKernels, outputs: int, inputs: int, bits: int, block: int, rows: int
) -> None:
    inputs += 5 if bits == 8 else 32 if block == 32 else 0
    weight, x = made(outputs, inputs, bits, block), drawn(rows, inputs)
    found, wanted = form.multiply(x, weight), in_bytes(x) @ meaning(weight, in_steps=True).T
    assert ((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max().item() < 1e-6
    for part in (slice(3), slice(-2, None)):  # the same with fewer beside it
        if len(x[part]) > 1:
            assert form.multiply(x[part], weight).equal(found[part])
    x[1, 3] = float("nan")
    found = form.multiply(x, weight)
    assert found[0].isfinite().all() and found[2:].isfinite().all() and not found[1].isfinite().any()


@pytest.mark.parametrize(("bits", "block"), FORMS)
def test_a_row_is_the_same_alone_and_among_others_for_any_number_of_threads(
    form: QuantisedKernels, bits: int, block: int
) -> None:
    weight, x = made(101, 192, bits, block), drawn(19, 192)
    together, threads = product(form, x, weight), torch.get_num_threads()
    for row in range(19):
        assert product(form, x[row : row + 1].contiguous(), weight).equal(together[row : row + 1])
    try:
        torch.set_num_threads(3)
        assert product(form, x, weight).equal(together)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(("bits", "block"), FORMS)
@pytest.mark.parametrize("half", [False, True])
def test_residual_gate_and_rounding(form: QuantisedKernels, bits: int, block: int, half: bool) -> None:
    gate, up, x = made(37, 192, bits, block), made(37, 192, bits, block, seed=1), drawn(5, 192)
    kind = torch.bfloat16 if half else torch.float32

    def rounded(value: Tensor) -> Tensor:
        return value.to(kind).float()

    plain = product(form, x, gate)
    residual = rounded(torch.randn(5, 37, generator=torch.Generator().manual_seed(3)))
    assert product(form, x, gate, residual=residual, half=half).equal(rounded(residual + rounded(plain)))
    out = torch.empty(5, 37)
    form.gated(out, form.inputs(ByteInputs.room(5, 192, gate.each), x), gate, up, half=half)
    inner, other = rounded(plain), rounded(product(form, x, up))
    torch.testing.assert_close(out, rounded(rounded(torch.nn.functional.silu(inner)) * other), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_no_number_stays_none(form: QuantisedKernels, bits: int, value: float) -> None:
    weight, x = made(9, 128, bits, 64 if bits == 4 else 0), drawn(2, 128)
    x[1, 70] = value
    out = product(form, x, weight)
    assert out[0].isfinite().all() and not out[1].isfinite().any()


def test_zeros(form: QuantisedKernels) -> None:
    assert not product(form, torch.zeros(2, 128), made(9, 128, 4, 64)).any()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 16, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_linear_multiplies_so_where_no_gradient_is_asked_for(bits: int, rows: int, dtype: torch.dtype) -> None:
    runtime.init_model_parallel(1)
    linear = ColumnParallelLinear(192, 40, gather_output=False, bias=True)
    quantised = quantised_form(linear, bits).to(dtype)
    quantised.fill(*quantise(linear.weight, bits, block=64 if bits == 4 else None))
    x = drawn(rows, 192).to(dtype).unflatten(0, (1, rows))
    wanted = x.double() @ meaning(quantised.stored, in_steps=False).T + linear.bias.double()
    with torch.no_grad():
        found = quantised(x)
    assert found.dtype == dtype and found.shape == (1, rows, 40)
    assert ((found - wanted).norm() / wanted.norm()).item() < 0.03
    with torch.enable_grad():  # training on quantised weights asks for the gradient of the inputs
        x = x.float().requires_grad_()
        quantised.float()(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_without_a_compiler_torch_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.init_model_parallel(1)
    monkeypatch.setattr(quantised_kernels, "load", lambda: None)
    linear = ColumnParallelLinear(192, 40, gather_output=False, bias=False)
    quantised = quantised_form(linear, 8)
    quantised.fill(*quantise(linear.weight, 8))
    x = drawn(3, 192)
    with torch.no_grad():
        found = quantised(x)
    wanted = x.double() @ meaning(quantised.stored, in_steps=False).T
    assert ((found - wanted).norm() / wanted.norm()).item() < 0.03
