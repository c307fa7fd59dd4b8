"""Many answers at once from one model: a queue in front of a batch whose rows join and leave between steps.

One thread owns the model. Requests come from any thread; what happens to one is told to its listener, on that thread,
so listeners hand over and return.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from sat_models import runtime
from sat_models.errors import ZooError
from sat_models.generation.answer import AnswerRow, Request
from sat_models.serving.requests import (
    BusyError,
    Failed,
    Finished,
    Listener,
    Nobody,
    Observer,
    Piece,
    RequestTimeoutError,
    Ticket,
)

logger = logging.getLogger(__name__)


class Scheduler:
    """Answers requests together, in the order they come.

    Args:
        engine: what `session(max_rows=..., piece=...)` opens a batch on: an `Engine`, or a `SharedEngine` of several
            processes.
        max_rows: most requests that run at a time.
        max_waiting: most requests that wait; more are refused.
        piece: tokens of a prompt that are computed between two steps of running answers.
        observer: is told what happens.
        on_fatal: is called once if the processes that share the model have lost each other, so that no request can be
            answered any more.
    """

    def __init__(
        self,
        engine: Any,
        *,
        max_rows: int = 16,
        max_waiting: int = 256,
        piece: int = 256,
        observer: Observer | None = None,
        on_fatal: Callable[[], object] | None = None,
    ) -> None:
        self._engine = engine
        self.max_rows, self.max_waiting, self.piece = max_rows, max_waiting, piece
        self._observer: Observer = observer or Nobody()
        self._on_fatal = on_fatal
        self._device = getattr(engine, "device", None) or runtime.current_device()
        self._waiting: deque[Ticket[Request]] = deque()
        self._running: dict[int, Ticket[Request]] = {}
        self._session: Any = None
        self._changed = threading.Condition()
        self._closing = False
        self._fatal: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def usable(self) -> bool:
        """True if requests are taken."""
        return self._fatal is None and not self._closing and self._thread.is_alive()

    @property
    def load(self) -> tuple[int, int]:
        """Requests that wait, and that run."""
        return len(self._waiting), len(self._running)

    def submit(self, request: Request, listener: Listener, *, seconds: float = 600.0) -> Ticket[Request]:
        """Put a request into the queue.

        Args:
            listener: is told each `Piece`, then `Finished` or `Failed`; nothing after `Ticket.cancel`.
            seconds: after which it fails, waiting included.

        Raises:
            BusyError: the queue is full, or the scheduler is closing.
        """
        return self.submit_all([(request, listener)], seconds=seconds)[0]

    def submit_all(
        self, requests: Sequence[tuple[Request, Listener]], *, seconds: float = 600.0
    ) -> list[Ticket[Request]]:
        """`submit` several that belong together: all or none."""
        tickets = [Ticket(request, listener, seconds) for request, listener in requests]
        with self._changed:
            if not self.usable:
                raise BusyError("The server is shutting down. Try again in a minute.")
            if len(self._waiting) + len(tickets) > self.max_waiting:
                raise BusyError(f"{len(self._waiting)} requests are waiting already. Try again in a few seconds.")
            self._waiting.extend(tickets)
            self._changed.notify()
        return tickets

    def close(self, grace: float = 0.0) -> None:
        """Take no more requests, let those at hand finish for `grace` seconds, end the rest, give the model back."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(grace)
        for ticket in [*self._waiting, *self._running.values()]:
            ticket.tell(Failed(BusyError("The server was shut down before the answer was finished.")))
            ticket.cancel()
        self._thread.join()

    def _work(self) -> None:
        """The thread that owns the model."""
        runtime.use_device(self._device)
        try:
            while self._wait_for_work():
                self._drop()
                self._admit()
                self._observer.load(*self.load)
                if self._running:
                    self._step()
                if not (self._running or self._waiting):
                    self._rest()
        finally:
            self._rest()

    def _rest(self) -> None:
        """Give the model back while there is nothing to do."""
        session, self._session = self._session, None
        if session is not None:
            try:
                session.close()
            except Exception as error:
                logger.exception("the batch could not be closed")
                self._check_fatal(error)

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when all is done for good."""
        with self._changed:
            while not (self._waiting or self._running or self._closing):
                self._observer.load(0, 0)
                self._changed.wait()
            return bool(self._waiting or self._running)

    def _drop(self) -> None:
        """Requests that were cancelled or took too long."""
        now = time.monotonic()
        with self._changed:
            gone = [t for t in self._waiting if t.cancelled or now > t.deadline]
            self._waiting = deque(t for t in self._waiting if not (t.cancelled or now > t.deadline))
        for number in [n for n, t in self._running.items() if t.cancelled or now > t.deadline]:
            gone.append(self._running.pop(number))
            self._session.remove(number)
        for ticket in gone:
            if ticket.cancelled:
                self._note(ticket, "cancelled")
            else:
                self._fail(ticket, RequestTimeoutError(f"The answer was not finished within {ticket.limit:g} s."))

    def _admit(self) -> None:
        """Let waiting requests into free rows."""
        while self._waiting and len(self._running) < self.max_rows and self._fatal is None:
            with self._changed:
                ticket = self._waiting.popleft()
            try:
                if self._session is None:
                    self._session = self._engine.session(max_rows=self.max_rows, piece=self.piece)
                self._running[self._session.add(ticket.request)] = ticket
            except ZooError as error:
                self._fail(ticket, error)
            except Exception as error:
                self._fail(ticket, error)
                self._lose(error)

    def _step(self) -> None:
        try:
            tokens = self._session.step()
        except Exception as error:
            logger.exception("a step failed")
            self._lose(error)
            return
        self._observer.tokens(sum(map(len, tokens.values())))
        for number in tokens:
            self._tell_text(self._running[number], self._session[number])
        for number in self._session.finished:
            self._finish(self._running.pop(number), self._session.remove(number))

    def _tell_text(self, ticket: Ticket[Request], row: AnswerRow) -> None:
        """The new part of an answer's text."""
        if not ticket.begun:
            ticket.begun = True
            self._observer.first_token(time.monotonic() - ticket.started)
        self._tell_piece(ticket, row)

    def _tell_piece(self, ticket: Ticket[Request], row: AnswerRow) -> None:
        piece, scores = row.take_text(), row.take_scores()
        if piece or scores:
            ticket.tell(Piece(piece, scores))

    def _finish(self, ticket: Ticket[Request], row: AnswerRow) -> None:
        if row.error is not None:
            self._fail(ticket, row.error)
            return
        self._tell_piece(ticket, row)
        answer = row.result()
        ticket.tell(Finished(answer))
        self._note(ticket, "cancelled" if ticket.cancelled else answer.finish_reason)

    def _fail(self, ticket: Ticket[Request], error: Exception) -> None:
        ticket.tell(Failed(error))
        self._note(ticket, "timeout" if isinstance(error, RequestTimeoutError) else "error")

    def _note(self, ticket: Ticket[Request], outcome: str) -> None:
        self._observer.over(outcome, time.monotonic() - ticket.started, ticket.request.inputs.length)

    def _lose(self, error: Exception) -> None:
        """All rows are lost; go on with a new batch if the processes still have each other."""
        lost, self._running = list(self._running.values()), {}
        for ticket in lost:
            self._fail(ticket, error)
        self._rest()
        self._check_fatal(error)

    def _check_fatal(self, error: Exception) -> None:
        if self._fatal is not None or getattr(self._engine, "usable", True):
            return
        self._fatal = error
        with self._changed:
            waiting, self._waiting = list(self._waiting), deque()
        for ticket in waiting:
            self._fail(ticket, error)
        if self._on_fatal is not None:
            self._on_fatal()
