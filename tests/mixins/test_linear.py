"""The short way through a linear gives what the long way gives, and is left where somebody else has a say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mixins.linear import project
from mixins.lora import LoRALinear
from mixins.lora_settings import LoRASettings
from mixins.sat_compat import ColumnParallelLinear, RowParallelLinear
from sat_models import runtime


def make(kind: str, *, bias: bool = False) -> ColumnParallelLinear | RowParallelLinear:
    runtime.init_model_parallel(1)
    torch.manual_seed(0)
    if kind == "row":
        return RowParallelLinear(12, 20, input_is_parallel=True, bias=bias)
    return ColumnParallelLinear(12, 20, gather_output=kind == "gathered", bias=bias)


@pytest.mark.parametrize("kind", ["column", "gathered", "row"])
@pytest.mark.parametrize("shape", [(1, 1, 12), (12,), (1, 5, 12), (3, 1, 12), (3, 4, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_the_same(kind: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    linear, x = make(kind).to(dtype), torch.randn(shape).to(dtype)
    with torch.inference_mode():
        torch.testing.assert_close(project(linear, x), linear(x))
        torch.testing.assert_close(project(linear, x.expand(2, *shape)[0]), linear(x))


def test_a_bias_is_added() -> None:
    linear = make("row", bias=True)
    with torch.no_grad():
        linear.bias.fill_(3.0)
        x = torch.randn(1, 1, 12)
        assert torch.equal(project(linear, x), linear(x))


def test_gradients_flow() -> None:
    linear, x = make("column"), torch.randn(1, 1, 12, requires_grad=True)
    project(linear, x).sum().backward()
    assert linear.weight.grad is not None
    assert x.grad is not None


def test_hooks_and_wrappers_are_heard() -> None:
    seen: list[Tensor] = []
    linear, x = make("column"), torch.randn(1, 1, 12)
    handle = linear.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.inference_mode():
        project(linear, x)
        assert len(seen) == 1
        handle.remove()
        wrapped = LoRALinear(linear, LoRASettings(targets=("*",), rank=2), name="x")
        wrapped.matrix_B[0].fill_(1.0)
        assert torch.equal(project(wrapped, x), wrapped(x))
        assert not torch.allclose(project(wrapped, x), project(linear, x))
