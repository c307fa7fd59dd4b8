"""OpenAI's API over one model that talks, one that draws, or both: routes and errors."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from sat_models.errors import ZooError
from sat_models.serving.body import Kind, read_body
from sat_models.serving.calls import respond
from sat_models.serving.chat_call import ChatCall
from sat_models.serving.core import Limits, ServerCore
from sat_models.serving.drawing_call import DrawingCall
from sat_models.serving.drawing_schema import DRAW_BODY, DrawRequest
from sat_models.serving.failures import UnknownModelError, on_error
from sat_models.serving.metrics import DrawingMetrics, Metrics
from sat_models.serving.schema import BODY, ChatRequest
from sat_models.serving.studio import Studio
from sat_models.serving.transport import Guard

_DOING = {"run": "Running", "talk": "Talking", "draw": "Drawing"}


def create_app(
    core: ServerCore | None,
    metrics: Metrics | DrawingMetrics,
    *,
    studio: Studio | None = None,
    keys: Collection[str] = (),
    origins: Collection[str] = (),
    on_shutdown: Callable[[], object] = lambda: None,
) -> FastAPI:
    """The web application.

    Args:
        core: the model that talks; None: none does.
        metrics: what `/metrics` shows.
        studio: the model that draws; None: none does.
        keys: API keys, any of which opens `/v1/`; none: no key is asked for.
        origins: pages of other hosts whose scripts may call (`https://chat.example.org`, or `*`); none: none may.
        on_shutdown: is called when the server ends, after the last answer.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(on_shutdown)

    app = FastAPI(title="cogvlm-sat-zoo", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, keys=tuple(keys), max_body=core.limits.max_body if core else Limits.max_body)
    if origins:  # outermost: a browser reads a refusal, too, only where this allows it
        allowed = {"allow_methods": ["*"], "allow_headers": ["*"], "expose_headers": ["*"]}
        app.add_middleware(CORSMiddleware, allow_origins=tuple(origins), **allowed)
    app.add_exception_handler(Exception, on_error)
    for kind in (ZooError, HTTPException, ValidationError):
        app.add_exception_handler(kind, on_error)
    names = (*(core.names if core else ()), *(studio.names if studio else ()))
    _add_models(app, names)
    if core is not None:
        _add_chat(app, core, names)
    if studio is not None:
        _add_drawing(app, studio, names)
    _add_states(app, core, studio, metrics)
    return app


def _add_models(app: FastAPI, names: Sequence[str]) -> None:
    models = [{"id": name, "object": "model", "created": int(time.time()), "owned_by": "zoo"} for name in names]

    @app.get("/v1/models")
    def list_models() -> dict[str, Any]:
        """The models that can be asked."""
        return {"object": "list", "data": models}

    @app.get("/v1/models/{name:path}")
    def one_model(name: str) -> dict[str, Any]:
        """One of them."""
        _check_model(name, names)
        return next(model for model in models if model["id"] == name)


def _add_chat(app: FastAPI, core: ServerCore, names: Collection[str]) -> None:
    @app.post("/v1/chat/completions", response_model=None, openapi_extra=BODY)
    async def chat(request: Request) -> Response:
        """One answer, whole or streamed."""
        body = await _body(request, ChatRequest)
        if body is None:
            return Response(status_code=499)
        _check_model(body.model, names)
        _check_model(body.model, core.names, does="talk")
        return await respond(ChatCall(body), core, request, streamed=bool(body.stream))


def _add_drawing(app: FastAPI, studio: Studio, names: Collection[str]) -> None:
    @app.post("/v1/images/generations", response_model=None, openapi_extra=DRAW_BODY)
    async def generate_images(request: Request) -> Response:
        """Images of one prompt, whole or streamed."""
        body = await _body(request, DrawRequest)
        if body is None:
            return Response(status_code=499)
        if body.model is not None:
            _check_model(body.model, names)
            _check_model(body.model, studio.names, does="draw")
        return await respond(DrawingCall(body), studio, request, streamed=bool(body.stream))


def _add_states(
    app: FastAPI, core: ServerCore | None, studio: Studio | None, metrics: Metrics | DrawingMetrics
) -> None:
    """Routes for those who watch. All are coroutines: they answer while every thread is busy with somebody's images."""
    queues = {"": core and core.scheduler, "drawings_": studio}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> JSONResponse:
        """Requests are taken."""
        there = {name: queue for name, queue in queues.items() if queue is not None}
        usable = all(queue.usable for queue in there.values())
        state: dict[str, Any] = {"ready": usable}
        for name, queue in there.items():
            state[f"{name}waiting"], state[f"{name}running"] = queue.load
        return JSONResponse(state, 200 if usable else 503)

    @app.get("/metrics")
    async def show_metrics() -> Response:
        """Statistics for Prometheus."""
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")


async def _body(request: Request, kind: type[Kind]) -> Kind | None:
    """The body of a request; None if its client went away before it was whole."""
    try:
        raw = await request.body()
    except ClientDisconnect:
        return None
    return await run_in_threadpool(read_body, raw, request.headers.get("content-type", ""), kind)


def _check_model(name: str, names: Collection[str], *, does: str = "run") -> None:
    if name not in names:
        known = ", ".join(names)
        raise UnknownModelError(f"The model '{name[:80]}' does not {does} here. {_DOING[does]}: {known}.")
