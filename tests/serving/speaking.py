"""A stand-in for a loaded model that says given texts, character by character."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from sat_models.errors import InputError
from sat_models.generation.engine import TokenStream
from sat_models.generation.sampling import SamplingOptions
from sat_models.serving.chat import ChatSession


class SpeakingEngine:
    """Answers with one text after the other; an exception in the list is raised in the middle of the answer."""

    def __init__(self, answers: Sequence[str | Exception], *, finish: str = "stop") -> None:
        self.answers, self.finish = list(answers), finish
        self.asked: list[tuple[Any, SamplingOptions]] = []
        self.closed = 0
        self.usable = True

    def tokens(self, inputs: Any, options: SamplingOptions) -> TokenStream:
        self.asked.append((inputs, options))
        stream = TokenStream(prompt_tokens=7)
        stream.feed_from(self._say(self.answers.pop(0), stream))
        return stream

    def _say(self, answer: str | Exception, stream: TokenStream) -> Iterator[int]:
        try:
            for character in "Mm" if isinstance(answer, Exception) else answer:
                stream.token_ids.append(ord(character))
                yield ord(character)
            if isinstance(answer, Exception):
                raise answer
            stream.finish_reason = self.finish
        finally:
            self.closed += 1


class _Decoder:
    def push(self, token: int) -> str:
        return chr(token)

    def flush(self) -> str:
        return ""


class _Processor:
    tokenizer = SimpleNamespace(stream=_Decoder)
    box_form = None

    def stops(self, version: str | None) -> tuple[str, ...]:
        return ("###",) if version == "llava_v0" else ()

    def __call__(self, image: Any, query: str, *, history: Any, version: str | None, allow_empty_query: bool) -> Any:
        if not query and not allow_empty_query:
            raise InputError("The question is empty.")
        return SimpleNamespace(image=image, query=query, history=list(history), version=version)


def session(*answers: str | Exception, finish: str = "stop", **kwargs: Any) -> tuple[ChatSession, SpeakingEngine]:
    """A chat session that gives these answers, and its engine."""
    engine = SpeakingEngine(answers, finish=finish)
    return ChatSession(SimpleNamespace(processor=_Processor()), engine=engine, **kwargs), engine
