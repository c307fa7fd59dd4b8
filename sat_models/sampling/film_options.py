"""How films are made: what a caller may choose, checked before any work begins."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from sat_models import runtime
from sat_models.errors import InputError
from sat_models.processing.film import check_fps
from sat_models.processing.image import ImageSource
from sat_models.sampling.options import check_guidance, check_seed


class FilmKeywords(TypedDict, total=False):
    """The keyword arguments of `film` and `film_steps`. What a model does not take is refused, not passed over.

    frames: how many; None (default): the model's usual number.
    fps: frames a second; None (default): as the model was trained.
    image: what the film begins with; {frame: image} for chosen frames, counted from 0, where the model takes them.
    size: width and height in pixels; None (default): the model's usual ones.
    steps: of the sampler; None (default): the model's usual number.
    guidance: how far to move away from what is made without the text; 1 is the text alone; None (default): as usual.
    seed: the same seed gives the same film; None (default) draws one.
    sampler: by name; None (default): the original's.
    """

    frames: int | None
    fps: float | None
    image: ImageSource | Mapping[int, ImageSource] | None
    size: tuple[int, int] | None
    steps: int | None
    guidance: float | None
    seed: int | None
    sampler: str | None


@dataclass(frozen=True, kw_only=True)
class FilmOptions:
    """See `FilmKeywords`; here nothing is left open but what a kind of model does not have (None).

    Attributes:
        images: numbers of the frames that images were given for.

    Raises:
        InputError: a number that cannot be.
    """

    frames: int
    fps: float
    size: tuple[int, int]
    seed: int
    guidance: float | None = None
    steps: int | None = None
    sampler: str | None = None
    images: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_frames(self.frames)
        check_fps(self.fps)
        check_seed(self.seed)
        if self.guidance is not None:
            check_guidance(self.guidance)

    def to_dict(self) -> dict[str, Any]:
        """For programs; without what the model does not have."""
        said = {"size": list(self.size), "frames": self.frames, "fps": self.fps}
        said |= {"steps": self.steps, "guidance": self.guidance, "sampler": self.sampler, "seed": self.seed}
        if self.images:
            said["images"] = list(self.images)
        return {name: value for name, value in said.items() if value is not None}


def check_frames(frames: object) -> None:
    """Raises InputError for what cannot be a number of frames; which ones a model makes is for the model to say."""
    if not isinstance(frames, int) or isinstance(frames, bool) or frames < 1:
        raise InputError(f"frames is {frames!r:.40}; it must be a whole number of at least 1")


def given_frames(image: ImageSource | Mapping[int, ImageSource] | None) -> dict[int, ImageSource]:
    """The images of a call by the numbers of their frames; one alone is the first frame.

    Raises:
        InputError: a key that is no number of a frame.
    """
    if image is None:
        return {}
    if not isinstance(image, Mapping):
        return {0: image}
    for frame in image:
        if not isinstance(frame, int) or isinstance(frame, bool) or frame < 0:
            raise InputError(f"an image was given for frame {frame!r:.40}; frames are whole numbers, counted from 0")
    return dict(sorted(image.items()))


def drawn_seed(seed: int | None) -> int:
    """The seed of a call, or a drawn one that all processes share."""
    return runtime.broadcast_object(secrets.randbelow(2**31)) if seed is None else seed
