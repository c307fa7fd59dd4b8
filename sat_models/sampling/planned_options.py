"""What a caller may choose of an image that is written with a plan, checked before any work begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from sat_models.config.planned import PlannedConfig
from sat_models.errors import ConfigError, InputError
from sat_models.sampling.options import check_seed

USUAL_TEMPERATURE = 0.8
_HOTTEST = 2.0


class PlannedKeywords(TypedDict, total=False):
    """The keyword arguments of `draw` and `steps` of a model that writes a plan.

    size, steps, guidance: there is one of each; None (default), or that one. Guidance is 1, the text alone.
    seed: the same seed gives the same image; that of a second prompt is one more, and so on; None (default) draws one.
    temperature: how freely the plan is drawn; 0 takes the likeliest; None (default): as usual.
    """

    size: tuple[int, int] | None
    steps: int | None
    guidance: float | None
    seed: int | None
    temperature: float | None


@dataclass(frozen=True, kw_only=True)
class PlannedOptions:
    """See `PlannedKeywords`; nothing is left open. `sampler` is what such a model lacks.

    Raises:
        InputError: a seed or a temperature that cannot be.
    """

    size: tuple[int, int]
    steps: int
    guidance: float
    seed: int
    temperature: float
    sampler: None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        temperature = self.temperature
        plain = isinstance(temperature, int | float) and not isinstance(temperature, bool)
        if not (plain and 0 <= temperature <= _HOTTEST):
            raise InputError(f"temperature is {temperature!r}; it must be a number from 0 to {_HOTTEST:g}")

    @classmethod
    def of(
        cls,
        config: PlannedConfig,
        *,
        seed: int,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
    ) -> PlannedOptions:
        """With what is usual in the place of None.

        Raises:
            InputError: another size or guidance than the model's own; also as the class.
            ConfigError: another number of steps.
        """
        if size is not None:
            pair = tuple(size) if isinstance(size, tuple | list) and len(size) == 2 else (size, None)
            config.check_size(*pair)
        if steps not in (None, config.steps):
            raise ConfigError(
                f"steps is {steps!r}; this model writes {config.steps} tokens, one in each step: leave it out"
            )
        if guidance not in (None, config.guidance):
            raise InputError(f"guidance is {guidance!r}; this model has none, which is 1: leave it out")
        return cls(
            size=config.usual_size,
            steps=config.steps,
            guidance=config.guidance,
            seed=seed,
            temperature=USUAL_TEMPERATURE if temperature is None else temperature,
        )
