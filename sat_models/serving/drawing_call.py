"""One call of OpenAI's images API: `n` images of one prompt, whole or streamed with previews."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from anyio.to_thread import run_sync
from PIL import Image

from sat_models.serving.drawing_schema import FORMATS, DrawRequest
from sat_models.serving.drawings import AllDrawn, Drawing, Drawn, Event, Progress
from sat_models.serving.failures import describe
from sat_models.serving.requests import Failed, Ticket
from sat_models.serving.studio import Studio

logger = logging.getLogger(__name__)


class DrawingCall:
    """See `calls.Call`."""

    headers: Mapping[str, str] = {}

    def __init__(self, body: DrawRequest) -> None:
        self.body, self.created = body, int(time.time())
        self._ticket: Ticket[Drawing] | None = None
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def prepare(self, studio: Studio) -> None:
        """See `calls.Call`; nothing is left open."""
        body = self.body
        asked = Drawing(body.prompt, body.options, count=body.n or 1, previews=body.partial_images or 0)
        self._drawing, self._chosen = studio.prepare(asked)

    async def start(self, studio: Studio) -> Event:
        """See `calls.Call`."""
        loop = asyncio.get_running_loop()
        tell = self._events.put_nowait
        self._ticket = studio.submit(self._drawing, lambda event: loop.call_soon_threadsafe(tell, event) and None)
        event = await self._events.get()
        if isinstance(event, Failed):
            raise event.error
        return event

    def cancel(self) -> None:
        """Frees its place."""
        if self._ticket is not None:
            self._ticket.cancel()

    async def whole(self, first: Event) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        data: list[dict[str, Any]] = []
        async for event in self._all_events(first):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Drawn):
                data.append({"b64_json": await self._encoded(event.work), **_about(event)})
        return {"created": self.created, "data": data, **self._form}

    async def stream(self, first: Event) -> AsyncIterator[str]:
        """The events of a streamed answer."""
        shown = 0
        async for event in self._all_events(first):
            if isinstance(event, Failed):
                logger.warning("a streamed drawing failed: %s", event.error)
                yield json.dumps(describe(event.error)[1])
                return
            if isinstance(event, Progress) and event.preview is not None:
                partial = {"partial_image_index": shown, "step": event.step, "of": event.of}
                yield await self._said("partial_image", event.preview, partial)
                shown += 1
            elif isinstance(event, Drawn):
                yield await self._said("completed", event.work, _about(event))
                shown = 0
        yield "[DONE]"

    async def _said(self, kind: str, image: Image.Image, more: dict[str, Any]) -> str:
        encoded = await self._encoded(image)
        said = {"type": f"image_generation.{kind}", "b64_json": encoded, "created_at": self.created}
        return json.dumps({**said, **self._form, "quality": "auto", **more}, ensure_ascii=False)

    async def _all_events(self, first: Event) -> AsyncIterator[Event]:
        """Events in order until all is over."""
        event = first
        while not isinstance(event, AllDrawn):
            yield event
            event = await self._events.get()

    @property
    def _form(self) -> dict[str, Any]:
        width, height = self._chosen.size
        return {"size": f"{width}x{height}", "output_format": self.body.output_format, "background": "opaque"}

    async def _encoded(self, image: Image.Image) -> str:
        return await run_sync(_base64, image, self.body.output_format, self.body.output_compression)


def _about(drawn: Drawn) -> dict[str, Any]:
    """Our own fields of an image: its seed, and what of its prompt was not read."""
    return {"seed": drawn.seed, **({"cut": drawn.cut} if drawn.cut else {})}


def _base64(image: Image.Image, kind: str, compression: int | None) -> str:
    buffer = io.BytesIO()
    image.save(buffer, FORMATS[kind], **({} if compression is None or kind == "png" else {"quality": compression}))
    return base64.b64encode(buffer.getvalue()).decode()
