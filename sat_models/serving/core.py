"""The common part of page and API: one model, its queue, and the limits of one server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from sat_models.errors import InputError
from sat_models.generation.answer import Request
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.strict.constraint import Constraint
from sat_models.processing.prompts import Turn
from sat_models.serving.images import ImagePolicy
from sat_models.serving.requests import Event, Observer, Piece
from sat_models.serving.scheduler import Scheduler

if TYPE_CHECKING:
    from sat_models.zoo.vlm import VLM


@dataclass(frozen=True)
class Limits:
    """The limits of one request.

    Attributes:
        max_new_tokens: most tokens of an answer, and what a request gets that does not say or wants more.
        max_images: pictures in one request.
        max_choices: answers to one request.
        seconds: until a request fails, waiting included.
        max_body: bytes of a request.
        max_rows: requests answered at a time; memory for keys and values grows with it.
        max_waiting: requests in the queue.
        prompt_piece: tokens of a prompt that are computed between two steps of running answers: 256 are on a GPU about
            as long as a step, on a CPU some steps.
    """

    max_new_tokens: int = 1024
    max_images: int = 4
    max_choices: int = 8
    seconds: float = 300.0
    max_body: int = 64 * 2**20
    max_rows: int = 16
    max_waiting: int = 256
    prompt_piece: int = 256


@dataclass(frozen=True)
class Question:
    """One question: the pictures of the conversation, its earlier turns, the question now, and how to answer.

    Attributes:
        system: None is the model's own system text; another one is for prompt styles with a place for it.
        max_tiles: most tiles of each image; None is the model's own choice.
        logprobs, top_logprobs: what is noted of each token; see `Request`.
        constraint: the form that the answer must have.
    """

    query: str
    images: Sequence[Image.Image] = ()
    history: Sequence[Turn] = ()
    version: str | None = None
    options: SamplingOptions = field(default_factory=SamplingOptions)
    stops: tuple[str, ...] = ()
    system: str | None = None
    max_tiles: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    constraint: Constraint | None = None


class ServerCore:
    """One model behind a queue.

    Args:
        vlm: a loaded model with a tokenizer.
        engine: what opens batches on it: `vlm.engine()`, or a `SharedEngine` where several processes share the model.
        names: what clients may call it, its own name first.
        limits, image_policy: what requests may take and bring.
        observer: is told what happens.
        on_fatal: is called when no request can be answered any more.
    """

    def __init__(
        self,
        vlm: VLM,
        engine: Any,
        *,
        names: Sequence[str],
        limits: Limits | None = None,
        image_policy: ImagePolicy | None = None,
        observer: Observer | None = None,
        on_fatal: Callable[[], object] | None = None,
    ) -> None:
        self.names = tuple(names)
        self.limits, self.image_policy = limits or Limits(), image_policy or ImagePolicy()
        self.processor = vlm.processor
        self.versions = vlm.versions
        self.read = vlm.read
        self.scheduler = Scheduler(
            engine,
            max_rows=self.limits.max_rows,
            max_waiting=self.limits.max_waiting,
            piece=self.limits.prompt_piece,
            observer=observer,
            on_fatal=on_fatal,
        )

    def room(self, request: Request) -> int:
        """Tokens that an answer gets: as many as are wanted, as the server gives, and as the context leaves."""
        most = self.limits.max_new_tokens
        return min(request.options.max_new_tokens or most, most, self.processor.max_length - request.inputs.length)

    def prepare(self, question: Question) -> Request:
        """A question as the model takes it; takes a moment of processor time.

        Raises:
            InputError: too many pictures or tokens, an empty question, a prompt that is too long, or a constraint that
                cannot be compiled.
            UnknownNameError: an unknown version.
        """
        if len(question.images) > self.limits.max_images:
            raise InputError(
                f"The conversation holds {len(question.images)} pictures; this server takes {self.limits.max_images}."
            )
        wanted = question.options.max_new_tokens
        if wanted is not None and wanted > self.limits.max_new_tokens:
            raise InputError(f"{wanted} new tokens were asked for; this server gives {self.limits.max_new_tokens}.")
        return Request.of(
            self.processor, list(question.images) or None, question.query, history=question.history,
            version=question.version, options=question.options, stops=question.stops,
            system=question.system, max_tiles=question.max_tiles, logprobs=question.logprobs,
            top_logprobs=question.top_logprobs, constraint=question.constraint,
        )  # fmt: skip


def choices_of(request: Request, count: int) -> list[Request]:
    """`count` requests for one question, with the seeds `seed`, `seed + 1`, …, or none."""
    seed = request.options.seed
    seeds = [None if seed is None else seed + number for number in range(count)]
    return [replace(request, options=replace(request.options, seed=each)) for each in seeds]


async def answer_events(core: ServerCore, question: Question) -> AsyncGenerator[Event, None]:
    """The events of a question, for callers in an event loop; closing it frees the request's place.

    Raises:
        InputError, UnknownNameError: a question that cannot be asked.
        BusyError: the queue is full.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()
    request = await asyncio.to_thread(core.prepare, question)

    def listener(event: Event) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    ticket = core.scheduler.submit(request, listener, seconds=core.limits.seconds)
    try:
        while True:
            event = await events.get()
            yield event
            if not isinstance(event, Piece):
                return
    finally:
        ticket.cancel()
