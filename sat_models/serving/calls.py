"""What answers every call of OpenAI's API, whichever model it asks: whole or streamed, cancelled when nobody waits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.responses import JSONResponse, Response

from sat_models.serving.failures import on_error
from sat_models.serving.transport import ClientGone, EventStream, unless_gone


class Call(Protocol):
    """One call, from its preparation to its last byte."""

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the answer; known once it is prepared."""

    def prepare(self, model: Any) -> None:
        """Checks what is asked for; runs in a thread. Raises InputError for whatever is wrong with it."""

    async def start(self, model: Any) -> Any:
        """Joins the queue and waits for the first event, so that what fails early has an HTTP status of its own.

        Raises:
            BusyError: the queue is full.
            Exception: what the call failed with.
        """

    def cancel(self) -> None:
        """Frees its place."""

    async def whole(self, first: Any) -> dict[str, Any]:
        """The body of an answer that is not streamed, from its first event on."""

    def stream(self, first: Any) -> AsyncIterator[str]:
        """The events of one that is."""


async def respond(call: Call, model: Any, request: Request, *, streamed: bool) -> Response:
    """The answer to a request; it is cancelled when its client goes away.

    Args:
        model: what the call is put to: a `ServerCore` or a `Studio`.
    """
    try:
        await unless_gone(run_sync(call.prepare, model, abandon_on_cancel=True), request.receive)
        first = await unless_gone(call.start(model), request.receive)
        if streamed:
            return EventStream(call.stream(first), call.cancel, headers=call.headers)
        return JSONResponse(await unless_gone(call.whole(first), request.receive), headers=call.headers)
    except ClientGone:
        call.cancel()
        return Response(status_code=499)
    except Exception as error:
        call.cancel()
        return await on_error(request, error)
    except BaseException:
        call.cancel()
        raise
