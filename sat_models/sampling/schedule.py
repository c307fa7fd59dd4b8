"""When a sampler looks, and how much of the image and of the noise is there then.

All tables hold a = √ᾱ, the share of the image; that of the noise is √(1 − a²). ᾱ falls from nearly 1 to nearly 0 over
1000 times (β linear in its root), is shifted by the config's `snr_shift` s to ᾱ / (s + (1 − s) ᾱ), and then stretched
so that nothing of the image is left at the last time ("zero terminal SNR", arXiv 2305.08891).

Sources: github.com/THUDM/CogView3 at d450a74, `sat/sgm/modules/diffusionmodules/`; diffusers 0.42.1,
`CogVideoXDDIMScheduler`. The two differ: SAT stretches the steps that it picked, diffusers picks from the stretched
table, and where the number of steps does not divide 1000 they pick other times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from sat_models.errors import ConfigError

TIMES = 1000
_BETAS = (0.00085, 0.012)


@dataclass(frozen=True)
class Step:
    """One step of a sampler.

    Attributes:
        time: what the model is told, 0 … 999.
        share: a of the latents as they are.
        seen: a by which the model's answer is read: `share`, or its nearest entry in the whole table.
        after: a of the latents after the step; 1 at the end.
    """

    time: float
    share: float
    seen: float
    after: float


def shares(snr_shift: float) -> Tensor:
    """a at all times before it is stretched, [1000] in fp64."""
    first, last = (beta**0.5 for beta in _BETAS)
    betas = torch.linspace(first, last, TIMES, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, dim=0)
    return (kept / (snr_shift + (1 - snr_shift) * kept)).sqrt()


def stretched(table: Tensor) -> Tensor:
    """a, falling, with its first value kept and its last one brought to 0."""
    first, last = table[0], table[-1]
    return (table - last) * (first / (first - last))


def sat_steps(count: int, snr_shift: float) -> list[Step]:
    """The steps of SAT's samplers.

    Raises:
        ConfigError: no number of steps from 1 to 1000.
    """
    check_steps(count)
    times = torch.from_numpy(numpy.linspace(TIMES - 1, 0, count, endpoint=False).astype(int))
    table = shares(snr_shift)
    whole = stretched(table)
    # A single step is the last time alone, which is all noise.
    own = stretched(table[times.flip(0)]).flip(0) if count > 1 else whole[times]
    seen = whole[(own[:, None] - whole).abs().argmin(dim=1)]
    after = [*own[1:].tolist(), 1.0]
    return [Step(*row) for row in zip(map(float, times), own.tolist(), seen.tolist(), after, strict=True)]


def diffusers_steps(count: int, snr_shift: float) -> list[Step]:
    """The steps of diffusers' DDIM with "trailing" times. Raises as `sat_steps`."""
    check_steps(count)
    whole = stretched(shares(snr_shift))
    times = (numpy.arange(TIMES, 0, -TIMES / count).round().astype(int) - 1).tolist()  # its rounding, too
    after = [time - TIMES // count for time in times]
    return [
        Step(float(time), whole[time].item(), whole[time].item(), whole[then].item() if then >= 0 else 1.0)
        for time, then in zip(times, after, strict=True)
    ]


SAMPLERS: dict[str, Callable[[int, float], list[Step]]] = {"sat": sat_steps, "diffusers": diffusers_steps}
"""By name: number of steps and SNR shift -> steps."""


def steps_of(sampler: str, count: int, snr_shift: float) -> list[Step]:
    """The steps of a sampler. Raises ConfigError for an unknown one, or a number of steps that cannot be."""
    check_sampler(sampler, tuple(SAMPLERS))
    return SAMPLERS[sampler](count, snr_shift)


def check_sampler(sampler: str, allowed: Sequence[str]) -> None:
    """Raise ConfigError for a sampler that a model does not have."""
    if sampler not in allowed:
        raise ConfigError(f"sampler is {sampler!r}; allowed: {', '.join(allowed)}")


def check_steps(count: int) -> None:
    """Raise ConfigError for a number of steps that cannot be."""
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= TIMES:
        raise ConfigError(f"steps is {count!r}; it must be a whole number from 1 to {TIMES}")
