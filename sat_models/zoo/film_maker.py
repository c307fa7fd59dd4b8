"""What every model that makes films can do, whichever way it makes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Unpack

from sat_models.processing.film import Film
from sat_models.sampling.film_options import FilmKeywords, FilmOptions


@dataclass(frozen=True)
class FilmState:
    """A film that is being made.

    Attributes:
        index: of the step, from 1. A step is what the model does at a time: a step of its sampler, or a frame.
        of: number of steps.
        options: what the film is made with; nothing is open any more.
        made: makes pixels of what is there.
    """

    index: int
    of: int
    options: FilmOptions
    made: Callable[[], Film]

    def film(self) -> Film:
        """The film; after the last step it is done, before it is rough or short."""
        return self.made()


class FilmMaker(ABC):
    """A model that makes films from prompts. A subclass says in `film_steps` how."""

    def film(self, prompt: str, **options: Unpack[FilmKeywords]) -> Film:
        """Make a film; in a run of several processes, call it on each.

        Args:
            prompt: what is to be seen.
            options: frames, fps, image, size, steps, guidance, seed, sampler: see `FilmKeywords`.

        Raises:
            InputError: an empty prompt; a number of frames, a size or an image that the model cannot use.
            ConfigError: an option that the model does not have.
            CheckpointError, MissingPackageError: a part is missing, with what to fetch or to install.
        """
        for state in self.film_steps(prompt, **options):
            last = state
        return last.film()

    @abstractmethod
    def film_steps(self, prompt: str, **options: Unpack[FilmKeywords]) -> Iterator[FilmState]:
        """As `film`, step by step: for progress, previews, and to stop (who stops listening does).

        Bad arguments raise at the call, before any weight is read. The last state's `film` is the result.
        """
