"""Routing by modality against the plain boolean-mask form, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mixins.expert_routing import ExpertRouting

IMAGE = [0, 1, 1, 1, 0, 0]
MASKS = {
    "image in the middle": [IMAGE, IMAGE],
    "image first": [[1, 1, 0, 0]],
    "image last": [[0, 0, 1, 1], [0, 0, 1, 1]],
    "one vision token": [[0, 1, 0]],
    "all vision": [[1, 1, 1], [1, 1, 1]],
    "all language": [[0, 0, 0], [0, 0, 0]],
    "one row without an image": [IMAGE, [0] * 6],
    "first row without an image": [[0] * 6, IMAGE],
    "different places": [IMAGE, [0, 0, 1, 1, 1, 0]],
    "different lengths": [IMAGE, [0, 1, 0, 0, 0, 0], [1] * 6],
    "two images": [[0, 1, 1, 0, 1, 1, 0]],
    "one row all vision": [[1, 1, 1], [0, 0, 0]],
}
BY_SLICES = ("image in the middle", "image first", "image last", "one vision token", "all vision")
BY_INDEX = tuple(name for name in MASKS if name not in (*BY_SLICES, "all language"))


class Expert(nn.Linear):
    """4 -> 6 features, counting the tokens it was given."""

    def __init__(self) -> None:
        super().__init__(4, 6, dtype=torch.float64)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.numel() // x.shape[-1])
        return super().forward(x).square()


def by_boolean_mask(hidden: Tensor, mask: Tensor, language: Expert, vision: Expert) -> Tensor:
    """The form of the originals."""
    merged = hidden.new_zeros(*hidden.shape[:2], 6)
    merged[mask.bool()] = vision(hidden[mask.bool()])
    merged[~mask.bool()] = language(hidden[~mask.bool()])
    return merged


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_equals_the_boolean_mask_form(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    mask = torch.tensor(MASKS[name], dtype=dtype)
    experts = {"language": Expert(), "vision": Expert()}
    hidden = torch.randn(*mask.shape, 4, dtype=torch.float64, requires_grad=True)
    leaves = [hidden, *(p for expert in experts.values() for p in expert.parameters())]

    def gradients(output: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(output.sin().sum(), leaves, allow_unused=True)
        return [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]

    expected = by_boolean_mask(hidden, mask, **experts)
    found = ExpertRouting.from_mask(mask).apply(hidden, **experts)
    torch.testing.assert_close(found, expected, atol=1e-14, rtol=1e-14)
    for ours, reference in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("name", MASKS)
def test_each_expert_runs_once_at_most_and_on_its_tokens_only(name: str) -> None:
    mask = torch.tensor(MASKS[name])
    language, vision = Expert(), Expert()
    ExpertRouting.from_mask(mask).apply(torch.randn(*mask.shape, 4, dtype=torch.float64), language, vision)
    of_vision = int(mask.sum())
    assert vision.seen == [of_vision] * (of_vision > 0)
    of_language = mask.numel() - of_vision
    assert language.seen == [of_language] * (of_language > 0)


@pytest.mark.parametrize("name", MASKS)
def test_the_plan(name: str) -> None:
    plan = ExpertRouting.from_mask(torch.tensor(MASKS[name]))
    assert (plan.span is not None) == (name in BY_SLICES)
    assert (plan.vision_index is not None) == (name in BY_INDEX)
    assert plan.has_vision == (name != "all language")


def test_no_mask_means_language() -> None:
    plan = ExpertRouting.from_mask(None)
    assert not plan.has_vision
    hidden = torch.randn(1, 3, 4, dtype=torch.float64)
    language = Expert()
    assert torch.equal(plan.apply(hidden, language, lambda x: pytest.fail("the vision expert ran")), language(hidden))


def test_slices_copy_no_token_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """The normal case needs neither gather nor scatter."""
    plan = ExpertRouting.from_mask(torch.tensor(MASKS["image in the middle"]))
    monkeypatch.setattr(Tensor, "index_copy", lambda *args: pytest.fail("scattered"))
    plan.apply(torch.randn(2, 6, 4, dtype=torch.float64), Expert(), Expert())
