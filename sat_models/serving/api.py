"""OpenAI's chat API over one model: routes, errors, streams."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from sat_models.errors import InputError, UnknownNameError
from sat_models.generation.sampling import SamplingOptions
from sat_models.processing.boxes import parse_boxes
from sat_models.processing.layout import VLMInputs
from sat_models.serving.core import Question, ServerCore
from sat_models.serving.messages import conversation, open_pictures
from sat_models.serving.metrics import Metrics
from sat_models.serving.requests import BusyError, Event, Failed, Finished, Piece, RequestTimeoutError, Ticket
from sat_models.serving.scheduler import seeds
from sat_models.serving.schema import ChatRequest, error_body, usage_body
from sat_models.serving.transport import ClientGone, EventStream, Guard, unless_gone

logger = logging.getLogger(__name__)


def create_app(
    core: ServerCore,
    metrics: Metrics,
    *,
    keys: Collection[str] = (),
    on_shutdown: Callable[[], object] = lambda: None,
) -> FastAPI:
    """The web application.

    Args:
        core: the model.
        metrics: what `/metrics` shows.
        keys: API keys, any of which opens `/v1/`; none: no key is asked for.
        on_shutdown: is called when the server ends, after the last answer.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(on_shutdown)

    app = FastAPI(title="cogvlm-sat-zoo", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, keys=tuple(keys), max_body=core.limits.max_body)
    app.add_exception_handler(Exception, _on_error)
    for kind in (InputError, UnknownNameError, BusyError, RequestTimeoutError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _on_error)
    models = [{"id": name, "object": "model", "created": int(time.time()), "owned_by": "zoo"} for name in core.names]

    # These three are coroutines: they answer while every thread is busy with somebody's pictures.
    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Requests are taken."""
        waiting, running = core.scheduler.load
        usable = core.scheduler.usable
        return JSONResponse({"ready": usable, "waiting": waiting, "running": running}, 200 if usable else 503)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """Statistics for Prometheus."""
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    def list_models() -> dict[str, Any]:
        """What can be asked."""
        return {"object": "list", "data": models}

    @app.get("/v1/models/{name:path}")
    def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        _check_model(core, name)
        return next(model for model in models if model["id"] == name)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """One answer, whole or streamed."""
        _check_model(core, body.model)
        call = await run_in_threadpool(Call.prepare, core, body)
        try:
            first = await unless_gone(call.start(core), request.receive)
            if body.stream:
                return EventStream(call.stream(first), call.cancel)
            return JSONResponse(await unless_gone(call.whole(first), request.receive))
        except ClientGone:
            call.cancel()
            return Response(status_code=499)
        except Exception as error:
            call.cancel()
            return await _on_error(request, error)
        except BaseException:
            call.cancel()
            raise

    return app


def _check_model(core: ServerCore, name: str) -> None:
    if name not in core.names:
        raise HTTPException(404, f"The model '{name}' does not run here. Running: {', '.join(core.names)}.")


@dataclass
class Call:
    """One call of the chat endpoint: `n` answers to one question, from its preparation to its last byte."""

    body: ChatRequest
    question: Question
    inputs: VLMInputs
    size: tuple[int, int] | None
    seconds: float
    name: str

    def __post_init__(self) -> None:
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.tickets: list[Ticket] = []
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    @classmethod
    def prepare(cls, core: ServerCore, body: ChatRequest) -> Call:
        """Fetches pictures and makes the prompt; runs in a thread.

        Raises:
            InputError: whatever is wrong with the request.
        """
        if (body.n or 1) > core.limits.max_choices:
            raise InputError(f"n is {body.n}; this server gives at most {core.limits.max_choices} answers at a time.")
        query, history = conversation(body.messages)
        images = open_pictures(body.messages, core.pictures, most=core.limits.max_images)
        question = Question(query, images, history, body.version, _options(body, core), body.stops)
        size = images[-1].size if images else None
        return cls(body, question, core.prepare(question), size, core.limits.seconds, body.model)

    async def start(self, core: ServerCore) -> tuple[int, Event]:
        """Joins the queue and waits for the first event, so that what fails early has an HTTP status of its own.

        Raises:
            BusyError: the queue is full.
            Exception: what the answer failed with.
        """
        loop = asyncio.get_running_loop()

        def listener(index: int) -> Callable[[Event], None]:
            return lambda event: loop.call_soon_threadsafe(self._events.put_nowait, (index, event)) and None

        options = self.question.options
        each = enumerate(seeds(options, self.body.n or 1))
        requests = [(self.inputs, replace(options, seed=seed), listener(index)) for index, seed in each]
        self.tickets = core.scheduler.submit_all(requests, stops=core.stops(self.question), seconds=self.seconds)
        index, event = await self._events.get()
        if isinstance(event, Failed):
            raise event.error
        return index, event

    def cancel(self) -> None:
        """Frees the places of all answers."""
        for ticket in self.tickets:
            ticket.cancel()

    async def whole(self, first: tuple[int, Event]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        done: dict[int, Finished] = {}
        async for index, event in self._all_events(first):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                done[index] = event
        choices = []
        for index, finished in sorted(done.items()):
            message = {"role": "assistant", "content": finished.answer.text, "refusal": None}
            message["boxes"] = self._boxes(finished.answer.text)
            choices.append(
                {"index": index, "message": message, "finish_reason": finished.answer.finish_reason, "logprobs": None}
            )
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage(list(done.values()))}

    async def stream(self, first: tuple[int, Event]) -> AsyncIterator[str]:
        """The chunks of a streamed answer."""
        done: list[Finished] = []
        wants_usage = bool(self.body.stream_options and self.body.stream_options.include_usage)
        for index in range(len(self.tickets)):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        async for index, event in self._all_events(first):
            if isinstance(event, Failed):
                logger.warning("a streamed answer failed: %s", event.error)
                yield json.dumps(_describe(event.error)[1])
                return
            if isinstance(event, Piece):
                yield self._chunk(index, {"content": event.text})
            else:
                done.append(event)
                boxes = {"boxes": self._boxes(event.answer.text)}
                yield self._chunk(index, boxes, event.answer.finish_reason)
        if wants_usage:
            usage = self._usage(done)
            yield json.dumps({**self._head("chat.completion.chunk"), "choices": [], "usage": usage})
        yield "[DONE]"

    async def _all_events(self, first: tuple[int, Event]) -> AsyncIterator[tuple[int, Event]]:
        """Events in order until all answers are over."""
        left = len(self.tickets)
        for number in itertools.count():
            index, event = first if number == 0 else await self._events.get()
            yield index, event
            left -= not isinstance(event, Piece)
            if not left:
                return

    def _boxes(self, text: str) -> list[dict[str, Any]]:
        """Boxes of an answer in pixels of the last picture."""
        found = parse_boxes(text, *self.size) if self.size else []
        return [{"phrase": box.phrase, "box": list(box.pixels), "normalized": list(box.normalized)} for box in found]

    def _usage(self, done: list[Finished]) -> dict[str, int]:
        return usage_body(self.inputs.length, sum(len(finished.answer.token_ids) for finished in done))

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.name}

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
        return json.dumps({**self._head("chat.completion.chunk"), "choices": [choice]}, ensure_ascii=False)


def _options(body: ChatRequest, core: ServerCore) -> SamplingOptions:
    """Sampling as asked for; what is left out is greedy."""
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "repetition_penalty": body.repetition_penalty,
        "seed": body.seed,
    }
    most = body.max_completion_tokens or body.max_tokens or core.limits.max_new_tokens
    return SamplingOptions(max_new_tokens=most, **{name: value for name, value in given.items() if value is not None})


def _describe(error: Exception) -> tuple[int, dict[str, Any]]:
    """HTTP status and body of an error."""
    if isinstance(error, RequestValidationError):
        problems = "; ".join(_problem(problem) for problem in error.errors())
        return 400, error_body(problems)
    if isinstance(error, HTTPException):
        return error.status_code, error_body(
            str(error.detail), code="model_not_found" if error.status_code == 404 else None
        )
    if isinstance(error, InputError | UnknownNameError):
        return 400, error_body(str(error))
    if isinstance(error, BusyError):
        return 503, error_body(str(error), kind="server_error", code="overloaded")
    if isinstance(error, RequestTimeoutError):
        return 504, error_body(str(error), kind="server_error", code="timeout")
    return 500, error_body(f"{type(error).__name__}: {error}", kind="server_error")


def _problem(problem: dict[str, Any]) -> str:
    """One finding of the body's validation: `messages.0.role: Input should be …`."""
    place = ".".join(str(part) for part in problem["loc"] if part != "body")
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


async def _on_error(request: Request, error: Exception) -> JSONResponse:
    status, body = _describe(error)
    if status == 500:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse(body, status, {"Retry-After": "2"} if status == 503 else None)
