"""One process in front, the others following: how a model split over processes is served.

Process 0 does all input and output. It prepares a request completely (picture read, question tokenised, limits
checked), so that what a user gets wrong fails there, before anybody else hears of it. The others get tensors.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

import torch.distributed as dist

from sat_models import runtime
from sat_models.generation.engine import Engine, TokenStream
from sat_models.generation.sampling import SamplingOptions
from sat_models.processing.inputs import VLMInputs

if TYPE_CHECKING:
    from sat_models.generation.session import BatchRow, BatchSession

logger = logging.getLogger(__name__)

_FOREVER = timedelta(days=365)
SETTLE_SECONDS = 60.0
"""How long a process that failed waits for the others before it gives up and ends the job."""


class SharedEngine:
    """`Engine.tokens` for process 0, which the other processes take part in by `follow`.

    Make it on all processes. With one process it is the engine and nothing else. Control messages have gloo groups of
    their own: waiting an hour for the next question is not an error, and needs no GPU.
    """

    def __init__(self, engine: Engine, *, settle_seconds: float = SETTLE_SECONDS) -> None:
        self._engine = engine
        self._alone = runtime.world_size() == 1
        self._broken = False
        if not self._alone:
            self._requests = dist.new_group(backend="gloo", timeout=_FOREVER)
            self._outcomes = dist.new_group(backend="gloo", timeout=timedelta(seconds=settle_seconds))

    @property
    def max_length(self) -> int:
        """Most tokens in all, prompt and image included."""
        return self._engine.max_length

    @property
    def leads(self) -> bool:
        """Whether this process is the one in front."""
        return runtime.rank() == 0

    def tokens(self, inputs: VLMInputs, options: SamplingOptions | None = None) -> TokenStream:
        """As `Engine.tokens`; the other processes join when the first token is asked for.

        Raises:
            InputError: as `Engine.tokens`; then the other processes were not bothered.
            RuntimeError: later, from the stream: another process failed. The turn is over on all of them.
        """
        stream = self._engine.tokens(inputs, options)
        if not self._alone:
            stream.wrap(lambda source: self._lead(source, (inputs.to("cpu"), options)))
        return stream

    def session(self, *, max_rows: int = 16) -> BatchSession | SharedSession:
        """As `Engine.session`, for process 0; the other processes take part in it by `follow`, until it is closed."""
        if self._alone:
            return self._engine.session(max_rows=max_rows)
        self._check_usable()
        return SharedSession(self, self._engine.session(max_rows=max_rows), max_rows)

    def follow(self) -> None:
        """Take part in one request after the other until process 0 says stop. For the processes that do not lead."""
        while (request := self.share(None)) is not None:
            error = None
            try:
                if isinstance(request, int):
                    self._follow_session(request)
                else:
                    for _ in self._engine.tokens(*request):
                        pass
            except Exception as failure:
                logger.debug("a turn failed on process %d", runtime.rank(), exc_info=True)
                error = _describe(failure)
            self.settle(error)

    def _follow_session(self, max_rows: int) -> None:
        """Do as process 0 does in its batch, step by step."""
        with self._engine.session(max_rows=max_rows) as session:
            while (calls := self.share(None)) is not None:
                for name, *arguments in calls:
                    getattr(session, name)(*arguments)
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

    def _lead(self, source: Iterator[int], request: tuple[VLMInputs, SamplingOptions | None]) -> Iterator[int]:
        """The tokens of one turn, with its announcement before and the agreement on its outcome after."""
        self._check_usable()
        self.share(request)
        error = None
        try:
            yield from source
        except Exception as failure:
            error = _describe(failure)
            raise
        except KeyboardInterrupt:
            self._broken = True  # the others were interrupted too, wherever they were
            raise
        finally:
            if not self._broken:
                source.close()
                others = self.settle(error)
                if others and error is None:
                    raise RuntimeError("; ".join(others))

    def _check_usable(self) -> None:
        if self._broken:
            raise RuntimeError("the processes that share this model have ended; start the program again")

    def share(self, request: Any) -> Any:
        """What process 0 passes in, on every process."""
        box = [request]
        dist.broadcast_object_list(box, src=0, group=self._requests)
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

    def __init__(self, engine: SharedEngine, session: BatchSession, max_rows: int) -> None:
        self._engine, self._session = engine, session
        self._calls: list[tuple[Any, ...]] = []
        self._open = True
        engine.share(max_rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __getitem__(self, number: int) -> BatchRow:
        return self._session[number]

    @property
    def running(self) -> tuple[int, ...]:
        """As `BatchSession.running`."""
        return self._session.running

    @property
    def finished(self) -> tuple[int, ...]:
        """As `BatchSession.finished`."""
        return self._session.finished

    def add(self, inputs: VLMInputs, options: SamplingOptions | None = None) -> int:
        """As `BatchSession.add`; what it refuses, the other processes never hear of."""
        number = self._session.add(inputs, options)
        self._calls.append(("add", inputs.to("cpu"), options))
        return number

    def remove(self, number: int) -> BatchRow:
        """As `BatchSession.remove`."""
        row = self._session.remove(number)
        self._calls.append(("remove", number))
        return row

    def step(self) -> dict[int, int]:
        """As `BatchSession.step`, on all processes."""
        if not self._open:
            raise RuntimeError("this batch session is closed; open another one")
        calls, self._calls = self._calls, []
        self._engine.share(calls)
        try:
            return self._session.step()
        except Exception as failure:
            self._open = False
            self._engine.settle(_describe(failure))  # the others failed too, or are lost
            raise

    def close(self) -> None:
        """As `BatchSession.close`, on all processes."""
        if not self._open:
            return
        self._open = False
        self._session.close()
        self._engine.share(None)
        if others := self._engine.settle(None):
            raise RuntimeError("; ".join(others))


def _describe(error: Exception) -> str:
    return f"process {runtime.rank()}: {type(error).__name__}: {error}"
