"""Samplers as iterators: each step gives the latents after it. Who stops listening cancels.

Legend: B batch, C channels, h and w of the latents.
"""

from __future__ import annotations

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
    latents = start.float()
    for index, step in enumerate(steps, start=1):
        v = predict(latents, step.time)
        clean = step.seen * latents - (1 - step.seen**2) ** 0.5 * v.float()
        kept = ((1 - step.after**2) / (1 - step.share**2)) ** 0.5
        latents = kept * latents + (step.after - step.share * kept) * clean
        yield Sample(index, len(steps), finite(latents, index, len(steps), v.dtype), clean)


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
