"""Backward passes that keep less: same values and gradients as torch's operators, and tensors that are not held."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mixins.gated_mlp import gated
from mixins.lora_product import low_rank_linear
from mixins.rms_norm import RMSNorm


def _same(ours: Tensor, theirs: Tensor, inputs: list[Tensor], *, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    above = torch.randn_like(ours)
    for own, other in zip(
        torch.autograd.grad(ours, inputs, above), torch.autograd.grad(theirs, inputs, above), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=0, atol=tolerance * max(1.0, float(other.abs().max())))


def _held(make: object) -> set[int]:
    """Storages that the graph of what `make()` returns holds."""
    held: set[int] = set()
    kept = []

    def hold(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        held.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        kept.append(make())
    return held


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("biased", [False, True])
def test_low_rank_linear(blocks: int, biased: bool) -> None:
    torch.manual_seed(blocks)
    x = torch.randn(2, 5, 12, requires_grad=True)
    weight, bias = torch.randn(18, 12), torch.randn(18) if biased else None
    A = [torch.randn(4, 12, requires_grad=True) for _ in range(blocks)]
    B = [torch.randn(18 // blocks, 4, requires_grad=True) for _ in range(blocks)]
    update = torch.cat([F.linear(F.linear(x, a), b) for a, b in zip(A, B, strict=True)], dim=-1)
    _same(low_rank_linear(x, weight, bias, A, B, 0.5), F.linear(x, weight, bias) + 0.5 * update, [x, *A, *B])
    frozen = x.detach()
    assert torch.autograd.grad(low_rank_linear(frozen, weight, bias, A, B, 0.5).sum(), A)[0].shape == A[0].shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm(dtype: torch.dtype) -> None:
    norm = RMSNorm(24, eps=1e-5).to(dtype)
    torch.manual_seed(0)
    x = (3 * torch.randn(2, 7, 24)).to(dtype).requires_grad_()
    norm.weight.data.uniform_(0.5, 1.5)
    theirs = F.rms_norm(x, (24,), norm.weight, 1e-5)
    _same(norm(x), theirs, [x, norm.weight], tolerance=1e-5 if dtype == torch.float32 else 5e-2)
    assert torch.equal(norm(x), theirs)


def test_gated() -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(3, 5, 8, requires_grad=True) for _ in range(2))
    ours, theirs = gated(F.silu, gate, up), F.silu(gate) * up
    assert torch.equal(ours, theirs)
    _same(ours, theirs, [gate, up])
    assert type(gated(F.gelu, gate, up).grad_fn).__name__ == "MulBackward0"


def test_a_linear_keeps_no_input_that_can_be_made_again() -> None:
    x = torch.randn(2, 6, 16, requires_grad=True)
    norm = RMSNorm(16).requires_grad_(False)
    A, B = [torch.randn(2, 16, requires_grad=True)], [torch.randn(32, 2, requires_grad=True)]
    weight = torch.randn(32, 16)
    normed: list[Tensor] = []

    def through() -> Tensor:
        normed.append(norm(x))
        return low_rank_linear(normed[0], weight, None, A, B, 1.0)

    held = _held(through)
    assert x.untyped_storage().data_ptr() in held and normed[0].untyped_storage().data_ptr() not in held
    low_rank_linear(norm(x), weight, None, A, B, 1.0).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
