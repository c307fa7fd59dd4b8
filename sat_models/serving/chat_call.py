"""One call of OpenAI's chat API: `n` answers to one question, whole or streamed."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sat_models.errors import InputError
from sat_models.generation.answer import GenerationResult
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.scores import TokenScore
from sat_models.serving.core import Limits, Question, ServerCore, choices_of
from sat_models.serving.failures import describe
from sat_models.serving.logprobs import logprobs_body
from sat_models.serving.messages import conversation, open_images, system_text
from sat_models.serving.requests import Event, Failed, Finished, Piece, Ticket
from sat_models.serving.schema import ChatRequest, usage_body

logger = logging.getLogger(__name__)


@dataclass
class ChatCall:
    """One call of the chat endpoint: `n` answers to one question, from its preparation to its last byte."""

    body: ChatRequest

    def __post_init__(self) -> None:
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.tickets: list[Ticket] = []
        self.size: tuple[int, int] | None = None
        self._cancelled = False
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def prepare(self, core: ServerCore) -> None:
        """Fetches pictures and makes the prompt; runs in a thread, and leaves off when the call is cancelled.

        Raises:
            InputError: whatever is wrong with the request.
        """
        body, limits = self.body, core.limits
        if (body.n or 1) > limits.max_choices:
            raise InputError(f"n is {body.n}; this server gives at most {limits.max_choices} answers at a time.")
        style = core.processor.style(body.version)
        query, history = conversation(body.messages, style)
        system = system_text(body.messages) if style.system is not None else None
        images = open_images(
            body.messages, core.image_policy, most=limits.max_images, wanted=lambda: not self._cancelled
        )  # fmt: skip
        if self._cancelled:
            return
        how = _options(body, limits), body.stop, system, body.max_tiles, bool(body.logprobs), body.top_logprobs or 0
        question = Question(query, images, history, body.version, *how, constraint=body.constraint)
        self.asked = core.prepare(question)
        self.most = core.room(self.asked)
        self.size = images[-1].size if images else None
        self._read, self._tokenizer = core.read, core.processor.tokenizer

    @property
    def headers(self) -> dict[str, str]:
        """The headers of an answer: how many tokens it could have at most."""
        return {"X-Max-Tokens": str(self.most)}

    async def start(self, core: ServerCore) -> tuple[int, Event]:
        """See `calls.Call`."""
        loop = asyncio.get_running_loop()

        def listener(index: int) -> Callable[[Event], None]:
            return lambda event: loop.call_soon_threadsafe(self._events.put_nowait, (index, event)) and None

        choices = enumerate(choices_of(self.asked, self.body.n or 1))
        requests = [(request, listener(index)) for index, request in choices]
        self.tickets = core.scheduler.submit_all(requests, seconds=core.limits.seconds)
        index, event = await self._events.get()
        if isinstance(event, Failed):
            raise event.error
        return index, event

    def cancel(self) -> None:
        """Frees the places of all answers."""
        self._cancelled = True
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
            message |= self._found(finished.answer)
            logprobs = self._logprobs(finished.answer.token_scores, first=True)
            reason = finished.answer.finish_reason
            choices.append({"index": index, "message": message, "finish_reason": reason, "logprobs": logprobs})
        return {**self._head("chat.completion"), "choices": choices, "usage": self._usage(list(done.values()))}

    async def stream(self, first: tuple[int, Event]) -> AsyncIterator[str]:
        """The chunks of a streamed answer."""
        done: list[Finished] = []
        begun: set[int] = set()
        wants_usage = bool(self.body.stream_options and self.body.stream_options.include_usage)
        for index in range(len(self.tickets)):
            yield self._chunk(index, {"role": "assistant", "content": ""})
        async for index, event in self._all_events(first):
            if isinstance(event, Failed):
                logger.warning("a streamed answer failed: %s", event.error)
                yield json.dumps(describe(event.error)[1])
                return
            if isinstance(event, Piece):
                logprobs = self._logprobs(event.scores, first=index not in begun)
                begun |= {index} if event.scores else set()
                yield self._chunk(index, {"content": event.text}, logprobs=logprobs)
            else:
                done.append(event)
                yield self._chunk(index, self._found(event.answer), event.answer.finish_reason)
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

    def _found(self, answer: GenerationResult) -> dict[str, Any]:
        """Boxes of an answer, and what else its family says in a form of its own, in pixels of the last picture; where
        probabilities were asked for, those of the answer and of each box; what is wrong with one that was cut off."""
        found = self._read(answer.text, self.size)
        more = found.parts if answer.incomplete is None else {**found.parts, "incomplete": answer.incomplete}
        boxes = [
            {"phrase": box.phrase, "box": list(box.pixels), "normalized": list(box.normalized)} for box in found.boxes
        ]
        if answer.score is None:
            return {"boxes": boxes, **more}
        scored = [{**box, "score": score} for box, score in zip(boxes, answer.box_scores, strict=False)]
        return {"boxes": scored, "score": answer.score, **more}

    def _logprobs(self, scores: Sequence[TokenScore], *, first: bool) -> dict[str, Any] | None:
        """The `logprobs` of tokens; `first`: they begin the answer."""
        return logprobs_body(scores, self._tokenizer, first=first) if self.body.logprobs else None

    def _usage(self, done: list[Finished]) -> dict[str, Any]:
        answers = [finished.answer for finished in done]
        made, cached = sum(len(answer.token_ids) for answer in answers), max(a.cached_tokens for a in answers)
        return usage_body(self.asked.inputs.length, made, cached)

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}

    def _chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, *, logprobs: dict[str, Any] | None = None
    ) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        return json.dumps({**self._head("chat.completion.chunk"), "choices": [choice]}, ensure_ascii=False)


def _options(body: ChatRequest, limits: Limits) -> SamplingOptions:
    """Sampling as asked for; what is left out is greedy, and no more tokens than the server gives."""
    given = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": None if body.top_k is None else max(body.top_k, 0),
        "repetition_penalty": body.repetition_penalty,
        "seed": body.seed,
    }
    wanted = body.max_completion_tokens or body.max_tokens or limits.max_new_tokens
    most = min(wanted, limits.max_new_tokens)
    return SamplingOptions(max_new_tokens=most, **{name: value for name, value in given.items() if value is not None})
