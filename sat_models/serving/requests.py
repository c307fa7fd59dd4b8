"""One request on its way through the queue: what it asked, the text it has so far, what its listener is told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sat_models.errors import ZooError
from sat_models.generation.results import GenerationResult
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.stops import StopText
from sat_models.processing.layout import VLMInputs
from sat_models.processing.tokens import Tokenizer

logger = logging.getLogger(__name__)


class BusyError(ZooError):
    """The queue is full, or the server is shutting down; the same request may succeed later."""


class RequestTimeoutError(ZooError):
    """A request was not finished in the time it has."""


@dataclass(frozen=True)
class Piece:
    """More text of an answer."""

    text: str


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


class Observer(Protocol):
    """What is told for statistics; see `metrics.Metrics`."""

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


class Ticket:
    """One request on its way. `cancel` it when nobody wants the answer any more."""

    def __init__(self, inputs: VLMInputs, options: SamplingOptions, text: AnswerText, listener: Listener, limit: float):
        self.inputs, self.options, self.text, self._listener = inputs, options, text, listener
        self.started = time.monotonic()
        self.deadline = self.started + limit
        self.limit = limit
        self.cancelled = False
        self.count = 0

    def cancel(self) -> None:
        """Give up; its place is free before the next token. No event follows. May be called at any time."""
        self.cancelled = True

    def tell(self, event: Event) -> None:
        """Hand an event to the listener; one that fails ends the request."""
        if self.cancelled:
            return
        try:
            self._listener(event)
        except Exception:
            logger.exception("a listener failed; its request is cancelled")
            self.cancelled = True


class AnswerText:
    """Tokens to text, up to a stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._decoder, self._stop = tokenizer.stream(), StopText(stops)
        self._pieces: list[str] = []

    @property
    def stopped(self) -> bool:
        """A stop string has come."""
        return self._stop.reached

    def push(self, token: int) -> str:
        """The text that is certain with one more token."""
        return self._note(self._stop.push(self._decoder.push(token)))

    def flush(self) -> str:
        """The rest, at the end."""
        return self._note(self._stop.push(self._decoder.flush()) + self._stop.flush())

    def whole(self) -> str:
        """All text so far."""
        return "".join(self._pieces)

    def _note(self, piece: str) -> str:
        self._pieces.append(piece)
        return piece
