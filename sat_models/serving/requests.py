"""One request on its way through the queue: what it asked, how long it has, what its listener is told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from sat_models.errors import ZooError
from sat_models.generation.answer import GenerationResult
from sat_models.generation.scores import TokenScore

logger = logging.getLogger(__name__)


class BusyError(ZooError):
    """The queue is full, or the server is shutting down; the same request may succeed later."""


class RequestTimeoutError(ZooError):
    """A request was not finished in the time it has."""


@dataclass(frozen=True)
class Piece:
    """More text of an answer; where its request asked for scores, those of the tokens that became certain with it, and
    then a piece may have no text."""

    text: str
    scores: list[TokenScore] = field(default_factory=list)


@dataclass(frozen=True)
class Finished:
    """The whole answer; no event follows."""

    answer: GenerationResult


@dataclass(frozen=True)
class Failed:
    """Why there is no answer; no event follows. `ZooError`s are the client's to mend."""

    error: Exception


Event = Piece | Finished | Failed
Listener = Callable[[Event], object]
Asked = TypeVar("Asked")
"""What a ticket is for."""


class Observer(Protocol):
    """A listener for statistics; see `metrics.Metrics`."""

    def load(self, waiting: int, running: int) -> None:
        """How many requests wait and run."""

    def first_token(self, seconds: float) -> None:
        """Time from a request to its first token."""

    def tokens(self, count: int) -> None:
        """Tokens that one step gave."""

    def over(self, outcome: str, seconds: float, prompt_tokens: int) -> None:
        """A request ended: "stop", "length", "cancelled", "timeout" or "error"."""


class Nobody:
    """Watches nothing."""

    def load(self, waiting: int, running: int) -> None:
        """See `Observer`."""

    def first_token(self, seconds: float) -> None:
        """See `Observer`."""

    def tokens(self, count: int) -> None:
        """See `Observer`."""

    def over(self, outcome: str, seconds: float, prompt_tokens: int) -> None:
        """See `Observer`."""


class Ticket(Generic[Asked]):
    """One request on its way. `cancel` it when nobody wants the answer any more.

    Attributes:
        begun: its first token has come.
    """

    def __init__(self, request: Asked, listener: Callable[[Any], object], limit: float) -> None:
        self.request, self._listener = request, listener
        self.started = time.monotonic()
        self.deadline = self.started + limit
        self.limit = limit
        self.cancelled = False
        self.begun = False

    def cancel(self) -> None:
        """Give up; its place is free before the next token. No event follows. May be called at any time."""
        self.cancelled = True

    def tell(self, event: object) -> None:
        """Hand an event to the listener; one that fails ends the request."""
        if self.cancelled:
            return
        try:
            self._listener(event)
        except Exception:
            logger.exception("a listener failed; its request is cancelled")
            self.cancelled = True
