"""How images are drawn: what a caller may choose, checked before any work begins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

from sat_models.config import PainterConfig
from sat_models.errors import InputError
from sat_models.sampling.schedule import SAMPLERS, check_sampler, check_steps

MOST_SEED = 2**63 - 2**20
"""Room is left for the seeds of the images that follow the first."""


class DrawingKeywords(TypedDict, total=False):
    """The keyword arguments of `draw` and `steps`.

    size: width and height in pixels; None (default): the model's usual ones.
    steps: None (default): the model's usual number.
    guidance: how far to move away from what is painted without the text; 1 is the text alone; None (default): as usual.
    seed: the same seed gives the same image; that of a second prompt is one more, and so on; None (default) draws one.
    sampler: "sat", as the original, or "diffusers"; None (default): the model's usual one.
    """

    size: tuple[int, int] | None
    steps: int | None
    guidance: float | None
    seed: int | None
    sampler: str | None


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """See `DrawingKeywords`; here nothing is left open but the seed.

    Attributes:
        samplers: those that the model has.

    Raises:
        InputError: a guidance or a seed that cannot be.
        ConfigError: no such sampler or number of steps.
    """

    steps: int
    guidance: float
    size: tuple[int, int] = (0, 0)
    seed: int | None = None
    sampler: str = "sat"
    samplers: tuple[str, ...] = tuple(SAMPLERS)

    def __post_init__(self) -> None:
        check_guidance(self.guidance)
        if self.seed is not None:
            check_seed(self.seed)
        check_sampler(self.sampler, self.samplers)
        check_steps(self.steps)

    @classmethod
    def of(
        cls,
        config: PainterConfig,
        *,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        sampler: str | None = None,
        sized: bool = True,
    ) -> DrawingOptions:
        """With what a model usually takes in the place of None.

        Args:
            sized: False where latents say the size.

        Raises:
            InputError: also a size that the model was not made for.
        """
        if sized:
            width, height = config.usual_size if size is None else pair_of(size)
            config.check_size(width, height)
        return cls(
            size=(width, height) if sized else (0, 0),
            steps=config.steps if steps is None else steps,
            guidance=config.guidance if guidance is None else guidance,
            seed=seed,
            sampler=config.SAMPLERS[0] if sampler is None else sampler,
            samplers=config.SAMPLERS,
        )


def check_guidance(guidance: object) -> None:
    """Raises InputError for what cannot be a guidance."""
    plain = isinstance(guidance, int | float) and not isinstance(guidance, bool)
    if not (plain and 0 <= guidance < math.inf):
        raise InputError(f"guidance is {guidance!r}; it must be a number of at least 0 (1 is the text alone)")


def check_seed(seed: object) -> None:
    """Raises InputError for what cannot be a seed."""
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    if not (whole and 0 <= seed <= MOST_SEED):
        raise InputError(f"seed is {seed!r}; it must be a whole number from 0 to {MOST_SEED}")


def check_prompts(prompts: object) -> list[str]:
    """One prompt, or several, as a list. Raises InputError for an empty one."""
    found = [prompts] if isinstance(prompts, str) else list(prompts) if isinstance(prompts, list | tuple) else []
    if not found or not all(isinstance(prompt, str) and prompt.strip() for prompt in found):
        raise InputError(
            f"the prompt is {prompts!r:.60}; say what is to be seen, in words, or give a list of such texts"
        )
    return found


def pair_of(size: object) -> tuple[int, int]:
    """Width and height as they were given. Raises InputError for something else."""
    if isinstance(size, tuple | list) and len(size) == 2:
        return size[0], size[1]
    raise InputError(f"the size is {size!r:.60}; it must be two whole numbers, width and height in pixels")
