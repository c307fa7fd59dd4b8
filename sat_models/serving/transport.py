"""HTTP at its edges: who may come in and how large, events out, and noticing that a client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sat_models.serving.body import error_body

T = TypeVar("T")


class Guard:
    """Lets requests to `/v1/` in that carry a key, if there are keys, and none that is too large.

    Args:
        app: what is guarded.
        keys: any of them opens; none: everybody comes in.
        max_body: bytes of a request.
    """

    def __init__(self, app: ASGIApp, *, keys: Collection[str] = (), max_body: int) -> None:
        self._app, self._keys, self._max_body = app, [key.encode() for key in keys], max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if scope["path"].startswith("/v1/") and not self._opens(headers.get(b"authorization", b"")):
            body = error_body("The API key is missing or wrong.", code="invalid_api_key")
            await JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
        elif length.isdigit() and int(length) > self._max_body:
            await JSONResponse(error_body(self._too_large()), 413)(scope, receive, send)
        else:
            await self._app(scope, self._counting(receive), send)

    def _opens(self, header: bytes) -> bool:
        given = header.partition(b" ")[2].strip()
        return not self._keys or any(hmac.compare_digest(given, key) for key in self._keys)

    def _counting(self, receive: Receive) -> Receive:
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._max_body:
                raise HTTPException(413, self._too_large())
            return message

        return counted

    def _too_large(self) -> str:
        return f"The request is larger than {self._max_body} bytes. Send smaller pictures."


class EventStream(Response):
    """Server-sent events, which end as soon as the client is gone; `on_end` is called then, and at any other end."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[str], on_end: Callable[[], object], headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events, self._on_end = events, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientGone, OSError):
                await unless_gone(self._send(send), receive)
        finally:
            self._on_end()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": f"data: {event}\n\n".encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def unless_gone(wanted: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of `wanted`; it is cancelled as soon as the client has closed its connection.

    Raises:
        ClientGone: it has.
    """
    working, leaving = asyncio.ensure_future(wanted), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    """Returns when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
