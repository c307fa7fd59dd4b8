"""One process in front, the others following: how a model split over processes is served.

Process 0 does all input and output. It prepares a request completely (picture read, question tokenised, limits
checked), so that what a user gets wrong fails there, before anybody else hears of it. The others get tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any, Self

import torch.distributed as dist

from sat_models import runtime
from sat_models.generation.answer import AnswerRow, Request
from sat_models.generation.engine import Engine, certain_ids
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.session import BatchSession
from sat_models.generation.stream import AnswerStream
from sat_models.processing.inputs import VLMInputs

logger = logging.getLogger(__name__)

_FOREVER = timedelta(days=365)
SETTLE_SECONDS = 60.0
"""How long a process that failed waits for the others before it gives up and ends the job."""


class SharedEngine:
    """An `Engine` for process 0, in whose sessions the other processes take part by `follow`.

    Make it on all processes. With one process it is the engine and nothing else. Control messages have gloo groups of
    their own: waiting an hour for the next question is not an error, and needs no GPU.
    """

    def __init__(self, engine: Engine, *, settle_seconds: float = SETTLE_SECONDS) -> None:
        self._engine = engine
        self._alone = runtime.world_size() == 1
        self._broken = False
        if not self._alone:
            self._messages = dist.new_group(backend="gloo", timeout=_FOREVER)
            self._outcomes = dist.new_group(backend="gloo", timeout=timedelta(seconds=settle_seconds))

    @property
    def max_length(self) -> int:
        """Most tokens in all, prompt and image included."""
        return self._engine.max_length

    @property
    def leads(self) -> bool:
        """True if this process is the one in front."""
        return runtime.rank() == 0

    def stream(self, request: Request) -> AnswerStream:
        """As `Engine.stream`; the other processes join when the first token is asked for.

        Raises:
            InputError: as `Engine.stream`; then the other processes were not bothered.
            RuntimeError: later, from the stream: another process failed. The answer is over on all of them.
        """
        if self._alone:
            return self._engine.stream(request)
        row = self._engine.row(request)
        return AnswerStream(row, self._lead(row))

    def tokens(self, inputs: VLMInputs, options: SamplingOptions | None = None) -> AnswerStream:
        """As `Engine.tokens`."""
        return self.stream(Request(inputs, options or SamplingOptions()))

    def session(self, *, max_rows: int = 16, piece: int | None = None) -> BatchSession | SharedSession:
        """As `Engine.session`, for process 0; the other processes take part in it by `follow`, until it is closed."""
        if self._alone:
            return self._engine.session(max_rows=max_rows, piece=piece)
        self._check_usable()
        how = {"max_rows": max_rows, "piece": piece}
        return SharedSession(self, self._engine.session(**how), how)

    def _lead(self, row: AnswerRow) -> Iterator[int]:
        with self.session(max_rows=1) as session:
            session.join(row)
            yield from certain_ids(session, row)

    def follow(self) -> None:
        """Take part in one session after the other until process 0 says stop. For the processes that do not lead."""
        while (how := self.share(None)) is not None:
            error = None
            try:
                self._follow_session(how)
            except Exception as failure:
                logger.debug("a session failed on process %d", runtime.rank(), exc_info=True)
                error = _describe(failure)
            self.settle(error)

    def _follow_session(self, how: dict[str, Any]) -> None:
        """Do as process 0 does in its session, step by step."""
        with self._engine.session(**how) as session:
            goes_on = True
            while goes_on:
                calls, goes_on = self.share(None)
                for name, argument in calls:
                    getattr(session, name)(argument)
                if goes_on:
                    session.step()

    def stop(self) -> None:
        """Let the other processes return from `follow`."""
        if self._alone or self._broken:
            return
        self._broken = True
        try:
            self.share(None)
        except RuntimeError:
            logger.debug("the other processes are gone already", exc_info=True)

    def leave(self) -> None:
        """Part from the other processes for good; call it on all of them, after `stop`."""
        if not self._alone:
            dist.destroy_process_group()

    @property
    def usable(self) -> bool:
        """False once the processes have lost each other; then only ending the program helps."""
        return not self._broken

    def part(self) -> None:
        """Note that the processes have lost each other."""
        self._broken = True

    def _check_usable(self) -> None:
        if self._broken:
            raise RuntimeError("the processes that share this model have ended; start the program again")

    def share(self, message: Any) -> Any:
        """The argument of process 0, on every process."""
        box = [message]
        try:
            dist.broadcast_object_list(box, src=0, group=self._messages)
        except BaseException:  # an interrupt too: the others are somewhere else now
            self._broken = True
            raise
        return box[0]

    def settle(self, error: str | None) -> list[str]:
        """Every process's error on every process, so that all go on to the next turn together.

        If one failed alone, the others may be waiting for it in the middle of a forward pass and never come here. Then
        this raises after `settle_seconds`, the process ends, and its launcher ends the others: nobody waits forever.
        """
        everyone: list[str | None] = [None] * runtime.world_size()
        self._broken = True
        try:
            dist.all_gather_object(everyone, error, group=self._outcomes)
        except RuntimeError as failure:
            what = error or f"process {runtime.rank()} did not fail itself"
            raise RuntimeError(f"{what}; the processes that share this model have lost each other") from failure
        self._broken = False
        messages = [message for message in everyone if message]
        if messages:
            self._engine.prefixes.clear()  # processes that failed kept none, so nobody may
        return messages


class SharedSession:
    """A `BatchSession` of process 0, with the same methods. What is called between two steps is told with the next."""

    def __init__(self, engine: SharedEngine, session: BatchSession, how: dict[str, Any]) -> None:
        self._engine, self._session = engine, session
        self._calls: list[tuple[str, Any]] = []
        self._open = True
        try:
            engine.share(how)
        except BaseException:
            session.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getitem__(self, number: int) -> AnswerRow:
        return self._session[number]

    @property
    def running(self) -> tuple[int, ...]:
        """As `BatchSession.running`."""
        return self._session.running

    @property
    def finished(self) -> tuple[int, ...]:
        """As `BatchSession.finished`."""
        return self._session.finished

    def add(self, request: Request) -> int:
        """As `BatchSession.add`; what it refuses, the other processes never hear of."""
        return self._told(self._session.add(request), request)

    def join(self, row: AnswerRow) -> int:
        """As `BatchSession.join`."""
        return self._told(self._session.join(row), row.request)

    def _told(self, number: int, request: Request) -> int:
        told = replace(request, inputs=request.inputs.to("cpu"), logprobs=False, top_logprobs=0)  # scored here alone
        self._calls.append(("add", told))
        return number

    def remove(self, number: int) -> AnswerRow:
        """As `BatchSession.remove`."""
        row = self._session.remove(number)
        self._calls.append(("remove", number))
        return row

    def step(self) -> dict[int, list[int]]:
        """As `BatchSession.step`, on all processes."""
        if not self._open:
            raise RuntimeError("this batch session is closed; open another one")
        calls, self._calls = self._calls, []
        try:
            self._engine.share((calls, True))
            return self._session.step()
        except Exception as failure:
            self._lose()
            if self._engine.usable:
                self._engine.settle(_describe(failure))  # the others failed too, or are lost
            raise
        except BaseException:
            self._lose()
            self._engine.part()  # the others were interrupted too, wherever they were
            raise

    def close(self) -> None:
        """As `BatchSession.close`, on all processes."""
        if not self._open:
            return
        self._open = False
        self._session.close()
        if not self._engine.usable:
            return
        self._engine.share((self._calls, False))
        if others := self._engine.settle(None):
            raise RuntimeError("; ".join(others))

    def _lose(self) -> None:
        self._open = False
        self._session.close()


def _describe(error: Exception) -> str:
    return f"process {runtime.rank()}: {type(error).__name__}: {error}"
