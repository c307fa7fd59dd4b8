"""Causal attention of fp32 training through C against torch's, with its gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sat_models.models.common import attention_kernels
from sat_models.models.common.attention import attend


def _inputs(length: int, heads: int, size: int) -> list[Tensor]:
    """Queries, keys and values as a model cuts them out of one tensor."""
    torch.manual_seed(length)
    mixed = torch.randn(2, length, 3 * heads, size).transpose(1, 2)
    return [part.requires_grad_() for part in mixed.split(heads, dim=1)]


@pytest.mark.parametrize("length, heads, size", [(2, 1, 16), (37, 3, 16), (64, 1, 128), (129, 2, 80), (200, 2, 64)])
def test_equals_torch(length: int, heads: int, size: int) -> None:
    inputs = _inputs(length, heads, size)
    above = torch.randn(2, length, heads, size).transpose(1, 2)
    torchs = F.scaled_dot_product_attention(*inputs, is_causal=True)
    ours = attention_kernels.causal_attention(*inputs)
    torch.testing.assert_close(ours, torchs, rtol=0, atol=2e-6)
    for own, other in zip(
        torch.autograd.grad(ours, inputs, above), torch.autograd.grad(torchs, inputs, above), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=0, atol=4e-6 * float(other.abs().max()))


def test_extremes_and_what_is_no_number() -> None:
    q, k, v = _inputs(40, 1, 16)
    large = attend(q * 1e4, k, v, None)
    torch.testing.assert_close(
        large, F.scaled_dot_product_attention(q * 1e4, k, v, is_causal=True), rtol=1e-4, atol=1e-4
    )
    broken = v.detach().clone()
    broken[0, 0, 20, 3] = float("nan")
    seen = attention_kernels.causal_attention(q, k, broken)
    assert seen[0, 0, 20:, 3].isnan().all() and seen[0, 0, :, :3].isfinite().all() and seen[1].isfinite().all()


def test_training_takes_them_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = _inputs(8, 2, 16)
    for pays in (True, False):
        monkeypatch.setattr(attention_kernels, "pays", lambda pays=pays: pays)
        assert (type(attend(q, k, v, None).grad_fn).__name__ == "_CausalAttentionBackward") == pays
    monkeypatch.undo()
    assert attention_kernels.pays() in (True, False)


def test_takes_only_what_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, _ = _inputs(8, 2, 16)
    monkeypatch.setattr(attention_kernels, "pays", lambda: True)
    assert attention_kernels.takes(q, k)
    assert not attention_kernels.takes(q[:, :, :1], k)  # fewer queries than keys
    assert not attention_kernels.takes(q.bfloat16(), k.bfloat16())
    assert not attention_kernels.takes(q[..., :8], k[..., :8])
    with torch.no_grad():
        assert not attention_kernels.takes(q, k)
