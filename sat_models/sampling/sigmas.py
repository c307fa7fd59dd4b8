"""Samplers of models that predict the noise, by its size σ: from noise alone, and from a smaller image ("relay").

x = image + σ · noise, σ = √(1 − a²) / a with the shares a of `schedule.shares`, unshifted. A model is given
x / √(1 + σ²).

Source: github.com/THUDM/CogView3 at d450a74, `sat/sgm/modules/diffusionmodules/{discretizer,denoiser,sampling}.py`.

Legend: B batch, C channels, h and w of the latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from sat_models.errors import ConfigError
from sat_models.sampling.samplers import Predict, Sample, finite
from sat_models.sampling.schedule import TIMES, check_steps, shares


@dataclass(frozen=True)
class SigmaStep:
    """One step.

    Attributes:
        time: what the model is told, 0 … 999.
        sigma: of the latents as they are.
        after: of the latents after the step; 0 at the end.
    """

    time: float
    sigma: float
    after: float


def sigma_table() -> Tensor:
    """σ at all times, [1000] in fp64, rising."""
    kept = shares(1.0).square()
    return ((1 - kept) / kept).sqrt()


def sigma_steps(count: int) -> list[SigmaStep]:
    """The steps of SAT's samplers. Raises ConfigError as `check_steps`."""
    check_steps(count)
    times = numpy.linspace(TIMES - 1, 0, count, endpoint=False).astype(int).tolist() if count < TIMES else None
    times = times or list(range(TIMES - 1, -1, -1))
    sigmas = [*sigma_table()[times].tolist(), 0.0]
    return [SigmaStep(float(time), *sigmas[number : number + 2]) for number, time in enumerate(times)]


def euler(predict: Predict, start: Tensor, steps: Sequence[SigmaStep]) -> Iterator[Sample]:
    """Euler's steps from noise (arXiv 2206.00364, without added noise); nothing is drawn.

    Args:
        predict: of the noise.
        start: noise, [B, C, h, w]; the arithmetic is in fp32.

    Raises:
        InputError: latents that are no numbers any more.
    """
    latents = start.float() * (1 + steps[0].sigma ** 2) ** 0.5
    for index, step in enumerate(steps, start=1):
        noise, kind = _noise(predict, latents, step)
        clean = latents - step.sigma * noise
        latents = latents + (step.after - step.sigma) * noise
        yield Sample(index, len(steps), finite(latents, index, len(steps), kind), clean)


def relay(predict: Predict, start: Tensor, image: Tensor, steps: Sequence[SigmaStep], partial: int) -> Iterator[Sample]:
    """Relay diffusion (arXiv 2403.05121, section 3.3): the last steps, from a blurred image with noise to a sharp one.

    Args:
        predict: of the noise.
        start: noise, [B, C, h, w].
        image: latents of the smaller image, enlarged, [B, C, h, w].
        steps: all.
        partial: how many of them are made.

    Raises:
        ConfigError: more than there are, or none.
        InputError: latents that are no numbers any more.
    """
    check_partial(partial, len(steps))
    return _relayed(predict, start.float(), image.float(), steps[-partial:])


def check_partial(partial: int, steps: int) -> None:
    """Raise ConfigError unless so many of `steps` steps can be made."""
    if not isinstance(partial, int) or isinstance(partial, bool) or not 1 <= partial <= steps:
        raise ConfigError(f"partial_num_steps is {partial!r}; of {steps} steps, 1 to {steps} can be made")


def _relayed(predict: Predict, start: Tensor, image: Tensor, steps: Sequence[SigmaStep]) -> Iterator[Sample]:
    many = len(steps)
    latents = image + steps[0].sigma * start
    for index, step in enumerate(steps, start=1):
        left = many + 1 - index
        noise, kind = _noise(predict, latents, step)
        clean = latents - step.sigma * noise
        ratio = step.after / step.sigma
        blur = (ratio * left - (left - 1)) / many
        latents = ratio * latents + (1 - ratio + blur) * clean - blur * image
        yield Sample(index, many, finite(latents, index, many, kind), clean)


def _noise(predict: Predict, latents: Tensor, step: SigmaStep) -> tuple[Tensor, torch.dtype]:
    """In fp32, and what it was computed in."""
    noise = predict(latents / (1 + step.sigma**2) ** 0.5, step.time)
    return noise.float(), noise.dtype
