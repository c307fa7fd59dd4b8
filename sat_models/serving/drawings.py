"""A drawing on its way through the queue of a studio: what was asked for, what its listener is told, previews."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from sat_models.errors import ZooError
from sat_models.sampling.options import DrawingKeywords
from sat_models.serving.requests import Failed

PREVIEW_SHARE = 0.1
"""Of the time of a drawing, what previews may take."""


@dataclass(frozen=True)
class DrawingLimits:
    """The limits of one request.

    Attributes:
        most: images of one prompt.
        seconds: until a request fails, waiting included.
        max_waiting: requests in the queue.
    """

    most: int = 10
    seconds: float = 1800.0
    max_waiting: int = 64


@dataclass(frozen=True)
class Drawing:
    """What is to be drawn.

    Attributes:
        prompt, options: of `Painter.steps`.
        count: images; each one's seed is one more than that of the one before.
        previews: so many of each image, evenly spread over its steps.
        pause: instead, one whenever so many seconds have passed; None: none.
    """

    prompt: str
    options: DrawingKeywords = field(default_factory=DrawingKeywords)
    count: int = 1
    previews: int = 0
    pause: float | None = None


@dataclass(frozen=True)
class Waits:
    """So many drawings come first, the one that is being made included."""

    ahead: int


@dataclass(frozen=True)
class Progress:
    """A step is done.

    Attributes:
        image: which, from 1.
        step, of: of its steps, from 1.
        preview: what it may become; None between two previews.
    """

    image: int
    step: int
    of: int
    preview: Image.Image | None = None


@dataclass(frozen=True)
class Drawn:
    """An image is done.

    Attributes:
        image: which, from 1.
        work: itself.
        seed: of it.
        cut: the end of the prompt that the model does not read; mostly empty.
    """

    image: int
    work: Image.Image
    seed: int
    cut: str


@dataclass(frozen=True)
class AllDrawn:
    """Every image is done; no event follows."""


Event = Waits | Progress | Drawn | AllDrawn | Failed
Listener = Callable[[Event], object]


class DrawingError(ZooError):
    """A drawing that failed while it was made, which is nothing that its request could mend."""


class Observer(Protocol):
    """A listener for statistics; see `metrics.DrawingMetrics`."""

    def load(self, waiting: int, running: int) -> None:
        """How many requests wait and run."""

    def step(self) -> None:
        """A step of a sampler is done."""

    def drawn(self) -> None:
        """An image is done."""

    def over(self, outcome: str, seconds: float) -> None:
        """A request ended: "done", "cancelled", "timeout" or "error"."""


class State(Protocol):
    """What every painter gives after a step."""

    @property
    def index(self) -> int:
        """Of the step, from 1."""

    @property
    def of(self) -> int:
        """Number of steps."""

    def preview(self) -> list[Image.Image]:
        """What the images may become; one that cannot be shown yet may be missing."""


class Previews:
    """Previews of one image: as many as are asked for, and by the clock none that would slow it down."""

    def __init__(self, drawing: Drawing) -> None:
        self._count, self._pause = drawing.previews, drawing.pause
        self._next = time.monotonic()

    def of(self, state: State) -> Image.Image | None:
        """A preview, if it is time for one; the last step needs none."""
        if state.index == state.of or not self._is_time(state.index, state.of):
            return None
        began = time.monotonic()
        preview = next(iter(state.preview()), None)
        ended = time.monotonic()
        self._next = ended + max(self._pause or 0, (ended - began) / PREVIEW_SHARE)
        return preview

    def _is_time(self, index: int, of: int) -> bool:
        if self._pause is not None:
            return time.monotonic() >= self._next
        before, now = ((self._count + 1) * step // of for step in (index - 1, index))
        return now > before
