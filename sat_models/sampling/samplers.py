"""Samplers as iterators: each step gives the latents after it. Who stops listening cancels.

Legend: B batch, C channels, h and w of the latents; those of a film, [B, F, C, h, w], will do as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sat_models.errors import InputError
from sat_models.sampling.schedule import Step

Predict = Callable[[Tensor, float], Tensor]
"""Latents [B, C, h, w] and the time -> v of the same shape, guided."""


@dataclass(frozen=True)
class Sample:
    """What is there after a step.

    Attributes:
        index, of: of the step, from 1, and how many there are.
        latents: [B, C, h, w] in fp32.
        clean: the same without the noise that the model sees in them: what the image may become.
    """

    index: int
    of: int
    latents: Tensor
    clean: Tensor


def ddim(predict: Predict, start: Tensor, steps: Sequence[Step]) -> Iterator[Sample]:
    """DDIM (arXiv 2010.02502) of a model that predicts v = √ᾱ · noise − √(1 − ᾱ) · image; nothing is drawn.

    Args:
        start: noise, [B, C, h, w]; the arithmetic is in fp32.

    Raises:
        InputError: latents that are no numbers any more.
    """

    def moved(index: int, step: Step, latents: Tensor, clean: Tensor) -> Tensor:
        kept = ((1 - step.after**2) / (1 - step.share**2)) ** 0.5
        return kept * latents + (step.after - step.share * kept) * clean

    return _sampled(predict, start, steps, moved)


def dpm_2m_sde(
    predict: Predict, start: Tensor, steps: Sequence[Step], noise: Callable[[int], Tensor]
) -> Iterator[Sample]:
    """DPM-Solver++ (2M, SDE; arXiv 2211.01095) of such a model: a step looks at what the one before it saw, too, and
    noise is drawn anew.

    Args:
        start: noise, [B, …]; the arithmetic is in fp32.
        noise: that of a step, by its index from 0; of the shape of `start`.

    Raises:
        InputError: latents that are no numbers any more.
    """
    before: tuple[Step, Tensor] | None = None

    def moved(index: int, step: Step, latents: Tensor, clean: Tensor) -> Tensor:
        nonlocal before
        earlier, before = before, (step, clean)
        if step.after == 1:
            return clean
        length = _log_ratio(step.after) - _log_ratio(step.share)
        towards = clean
        if earlier is not None:
            ratio = (_log_ratio(step.share) - _log_ratio(earlier[0].share)) / length
            towards = clean + (clean - earlier[1]) / (2 * ratio)
        rest, fresh = 1 - step.after**2, -math.expm1(-2 * length)
        kept = (rest / (1 - step.share**2)) ** 0.5 * math.exp(-length)
        drawn = noise(index).to(latents)
        return kept * latents + fresh * step.after * towards + (rest * fresh) ** 0.5 * drawn

    return _sampled(predict, start, steps, moved)


def _log_ratio(share: float) -> float:
    """Logarithm of the image's share over that of the noise."""
    return math.log(share / (1 - share**2) ** 0.5) if share > 0 else -math.inf


def _sampled(
    predict: Predict, start: Tensor, steps: Sequence[Step], moved: Callable[[int, Step, Tensor, Tensor], Tensor]
) -> Iterator[Sample]:
    """`moved` takes a step's index from 0, the step, the latents and the clean ones in them to the next latents."""
    latents = start.float()
    for index, step in enumerate(steps):
        v = predict(latents, step.time)
        clean = step.seen * latents - (1 - step.seen**2) ** 0.5 * v.float()
        latents = finite(moved(index, step, latents, clean), index + 1, len(steps), v.dtype)
        yield Sample(index + 1, len(steps), latents, clean)


def finite(latents: Tensor, index: int, of: int, kind: torch.dtype) -> Tensor:
    """The latents, where they are numbers.

    Args:
        index, of: of the step.
        kind: dtype that the model ran in.

    Raises:
        InputError: they are no numbers any more.
    """
    if torch.isfinite(latents).all():
        return latents
    raise InputError(
        f"the latents are no numbers after step {index} of {of}: the model ran in {kind}, in which its activations "
        "overflow. Load it in bfloat16 or float32.",
        hint="(dtype, --bf16, --fp32)",
    )
