"""One painter behind a queue: one drawing at a time, beside whatever else its process does.

One thread owns the painter. Drawings come from any thread; what happens to one is told to its listener, on that thread,
so listeners hand over and return.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sat_models import runtime
from sat_models.errors import ConfigError, InputError, ZooError
from sat_models.sampling.options import DrawingOptions
from sat_models.serving.drawings import (
    AllDrawn,
    Drawing,
    DrawingError,
    DrawingLimits,
    Drawn,
    Event,
    Listener,
    Observer,
    Previews,
    Progress,
    Waits,
)
from sat_models.serving.requests import BusyError, Failed, RequestTimeoutError, Ticket

if TYPE_CHECKING:
    from sat_models.zoo.open_painter import ImagePainter

logger = logging.getLogger(__name__)


class Studio:
    """Draws one request after the other, in the order they come.

    Args:
        painter: whose parts are at hand.
        names: what clients may call it, its own name first.
        limits: what requests may take.
        observer: is told what happens.

    Raises:
        CheckpointError, MissingPackageError: a part of the painter is missing, with what to fetch or to install.
    """

    def __init__(
        self, painter: ImagePainter, *, names: Sequence[str], limits: DrawingLimits | None = None,
        observer: Observer | None = None,
    ) -> None:  # fmt: skip
        self.painter, self.names, self.limits = painter, tuple(names), limits or DrawingLimits()
        with contextlib.suppress(InputError):  # this prompt is no matter, the parts are
            painter.check("A red circle.")
        self._observer = observer
        self._waiting: deque[Ticket[Drawing]] = deque()
        self._running: Ticket[Drawing] | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="studio", daemon=True)
        self._thread.start()

    @property
    def usable(self) -> bool:
        """True if requests are taken."""
        return not self._closing and self._thread.is_alive()

    @property
    def load(self) -> tuple[int, int]:
        """Requests that wait, and that run."""
        return len(self._waiting), int(self._running is not None)

    def prepare(self, drawing: Drawing) -> tuple[Drawing, DrawingOptions]:
        """With everything filled in that was left open, the seed too; and what that is.

        Raises:
            InputError: what cannot be drawn.
            CheckpointError, MissingPackageError: a part of the painter is missing.
        """
        if not 1 <= drawing.count <= self.limits.most:
            raise InputError(f"{drawing.count} images were asked for; this server draws 1 to {self.limits.most}.")
        try:
            chosen = self.painter.check(drawing.prompt, **drawing.options)
        except ConfigError as error:
            raise InputError(error.public) from error
        return replace(drawing, options={**drawing.options, "seed": chosen.seed}), chosen

    def submit(self, drawing: Drawing, listener: Listener) -> Ticket[Drawing]:
        """Put a drawing of `prepare` into the queue.

        Args:
            listener: is told `Waits`, `Progress` and `Drawn`, then `AllDrawn` or `Failed`; nothing after
                `Ticket.cancel`.

        Raises:
            BusyError: the queue is full, or the studio is closing.
        """
        ticket = Ticket(drawing, listener, self.limits.seconds)
        with self._changed:
            if not self.usable:
                raise BusyError("The server is shutting down. Try again in a minute.")
            if len(self._waiting) >= self.limits.max_waiting:
                raise BusyError(f"{len(self._waiting)} drawings are waiting already. Try again in a minute.")
            self._waiting.append(ticket)
            if ahead := len(self._waiting) - 1 + int(self._running is not None):
                ticket.tell(Waits(ahead))
            self._changed.notify()
        self._watch()
        return ticket

    def close(self, grace: float = 0.0) -> None:
        """Take no more requests, let those at hand finish for `grace` seconds, end the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(grace)
        for ticket in [*self._waiting, *filter(None, [self._running])]:
            ticket.tell(Failed(BusyError("The server was shut down before the drawing was finished.")))
            ticket.cancel()
        self._thread.join()

    def _work(self) -> None:
        """The thread that owns the painter."""
        runtime.use_device(self.painter.device)
        while (ticket := self._next()) is not None:
            self._draw(ticket)
            self._running = None
            self._watch()

    def _next(self) -> Ticket[Drawing] | None:
        """The drawing to make now, when there is one; None when all is done for good."""
        with self._changed:
            self._end_what_is_over()
            while not (self._waiting or self._closing):
                self._changed.wait()
            if not self._waiting:
                return None
            self._running = self._waiting.popleft()
            for ahead, ticket in enumerate(self._waiting, start=1):
                ticket.tell(Waits(ahead))
        self._watch()
        return self._running

    def _draw(self, ticket: Ticket[Drawing]) -> None:
        try:
            for number in range(ticket.request.count):
                for event in self._events(ticket.request, number):
                    self._end_what_is_over()
                    if ticket.cancelled:
                        self._note(ticket, "cancelled")
                        return
                    _check_time(ticket)
                    ticket.tell(event)
            self._note(ticket, "done")  # before its listener may let go of it
            ticket.tell(AllDrawn())
        except Exception as error:
            if not isinstance(error, ZooError):
                logger.exception("a drawing failed")
            self._fail(ticket, DrawingError(error.public) if isinstance(error, InputError) else error)

    def _events(self, drawing: Drawing, number: int) -> Iterator[Progress | Drawn]:
        """Of one image. Who stops listening stops the painter."""
        seed = drawing.options["seed"] + number
        states = self.painter.steps(drawing.prompt, **{**drawing.options, "seed": seed})
        previews = Previews(drawing)
        with contextlib.closing(states):
            for state in states:
                if self._observer:
                    self._observer.step()
                yield Progress(number + 1, state.index, state.of, previews.of(state))
            (work,) = state.images()
        if self._observer:
            self._observer.drawn()
        yield Drawn(number + 1, work, seed, state.cut[0])

    def _end_what_is_over(self) -> None:
        """Waiting requests that were cancelled, or have waited too long."""
        now = time.monotonic()
        with self._changed:
            over = [ticket for ticket in self._waiting if ticket.cancelled or now > ticket.deadline]
            for ticket in over:
                self._waiting.remove(ticket)
        for ticket in over:
            if ticket.cancelled:
                self._note(ticket, "cancelled")
            else:
                self._fail(ticket, _too_late(ticket))
        if over:
            self._watch()

    def _fail(self, ticket: Ticket[Drawing], error: Exception) -> None:
        self._note(ticket, "timeout" if isinstance(error, RequestTimeoutError) else "error")
        ticket.tell(Failed(error))

    def _note(self, ticket: Ticket[Drawing], outcome: str) -> None:
        if self._observer:
            self._observer.over(outcome, time.monotonic() - ticket.started)

    def _watch(self) -> None:
        if self._observer:
            self._observer.load(*self.load)


def _check_time(ticket: Ticket[Drawing]) -> None:
    if time.monotonic() > ticket.deadline:
        raise _too_late(ticket)


def _too_late(ticket: Ticket[Drawing]) -> RequestTimeoutError:
    return RequestTimeoutError(f"The drawing was not finished within {ticket.limit:g} s.")


async def drawing_events(studio: Studio, drawing: Drawing) -> AsyncGenerator[Event, None]:
    """The events of a drawing, for callers in an event loop; closing it ends the drawing.

    Raises:
        InputError: what cannot be drawn.
        BusyError: the queue is full.
    """
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[Event] = asyncio.Queue()
    prepared, _ = await asyncio.to_thread(studio.prepare, drawing)
    ticket = studio.submit(prepared, lambda event: loop.call_soon_threadsafe(told.put_nowait, event) and None)
    try:
        event: Event | None = None
        while not isinstance(event, AllDrawn | Failed):
            event = await told.get()
            yield event
    finally:
        ticket.cancel()
