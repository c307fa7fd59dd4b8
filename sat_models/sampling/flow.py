"""Samplers of models that predict the way from noise to image ("flow matching", arXiv 2210.02747).

x = (1 − σ) · image + σ · noise, and the model gives noise − image.

Source: diffusers 0.42.1, `CogView4Pipeline` and `FlowMatchEulerDiscreteScheduler`.

Legend: B batch, C channels, h and w of the latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy
from torch import Tensor

from sat_models.config.thin import FlowConfig
from sat_models.sampling.samplers import Predict, Sample, finite
from sat_models.sampling.schedule import TIMES, check_steps
from sat_models.sampling.sigmas import SigmaStep


def flow_steps(count: int, tokens: int, config: FlowConfig) -> list[SigmaStep]:
    """The steps of an image of so many tokens: the more, the longer it stays in noise.

    Raises:
        ConfigError: as `check_steps`.
    """
    check_steps(count)
    times = numpy.linspace(TIMES, 1, count).astype(int).tolist()
    shift = config.base_shift + config.max_shift * (tokens / config.base_tokens) ** 0.5
    sigmas = [shift / (shift + TIMES / time - 1) for time in times] + [0.0]
    return [SigmaStep(float(time), *sigmas[number : number + 2]) for number, time in enumerate(times)]


def flow(predict: Predict, start: Tensor, steps: Sequence[SigmaStep]) -> Iterator[Sample]:
    """Euler's steps along the flow; nothing is drawn.

    Args:
        start: noise, [B, C, h, w]; the arithmetic is in fp32.

    Raises:
        InputError: latents that are no numbers any more.
    """
    latents = start.float()
    for index, step in enumerate(steps, start=1):
        v = predict(latents, step.time)
        clean = latents - step.sigma * v.float()
        latents = latents + (step.after - step.sigma) * v.float()
        yield Sample(index, len(steps), finite(latents, index, len(steps), v.dtype), clean)
