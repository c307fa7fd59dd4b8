"""Images as codes and back."""

from __future__ import annotations

import torch

from mixins.patch_codec import PatchCodecMixin

LEVELS = (5, 4, 3)


def codec() -> PatchCodecMixin:
    torch.manual_seed(0)
    return PatchCodecMixin(LEVELS, 16, 2, 8)


def test_codes_are_of_their_squares_and_decode_to_what_training_sees() -> None:
    mixin, pixels = codec(), torch.rand(2, 3, 32, 24) * 2 - 1
    codes = mixin.encode(pixels)
    assert codes.shape == (2, 4, 3) and mixin.codes == 60 and 0 <= int(codes.min()) <= int(codes.max()) < 60
    assert torch.allclose(mixin.decode(codes), mixin.reconstruct(pixels), atol=1e-5)
    other = pixels.clone()
    other[:, :, :8, :8] = 1
    changed = (mixin.encode(other) != codes).nonzero().tolist()
    assert all(where[1:] == [0, 0] for where in changed), "a square's code depends on its own pixels alone"


def test_every_code_comes_back() -> None:
    """Codes count through all combinations of numbers: each is written as it is read."""
    mixin = codec()
    every = torch.arange(mixin.codes).view(1, 6, 10)
    mixin._painted = lambda numbers: numbers  # type: ignore[method-assign]
    numbers = mixin.decode(every)
    assert numbers.min() == -1 and numbers.max() == 1 and numbers.flatten(1, 2)[0].unique(dim=0).shape == (60, 3)
    mixin._rounded = lambda pixels: numbers  # type: ignore[method-assign]
    assert torch.equal(mixin.encode(torch.empty(0)), every)


def test_all_of_it_learns_past_the_rounding() -> None:
    mixin, pixels = codec(), torch.rand(4, 3, 16, 16) * 2 - 1
    (mixin.reconstruct(pixels) - pixels).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mixin.parameters())
