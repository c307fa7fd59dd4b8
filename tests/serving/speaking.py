"""A stand-in for a loaded model that says given texts, character by character."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from sat_models.config.sequence import PLAIN_FORM
from sat_models.errors import InputError
from sat_models.generation.answer import AnswerRow, Request
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.stream import AnswerStream
from sat_models.processing.prompts import PromptStyle
from sat_models.serving.chat import ChatSession
from sat_models.zoo.vlm import VLM

END = -1


class Letters:
    """Decodes ids that are the code points of characters."""

    def push(self, token: int) -> str:
        return chr(token)

    def flush(self) -> str:
        return ""


class SpeakingEngine:
    """Answers with one text after the other; an exception in the list is raised in the middle of the answer."""

    def __init__(self, answers: Sequence[str | Exception], *, finish: str = "stop") -> None:
        self.answers, self.finish = list(answers), finish
        self.asked: list[tuple[Any, SamplingOptions]] = []
        self.closed = 0
        self.usable = True

    def stream(self, request: Request) -> AnswerStream:
        self.asked.append((request.inputs, request.options))
        answer = self.answers.pop(0)
        budget = len(answer) if self.finish == "length" and isinstance(answer, str) else 10_000
        row = AnswerRow(request, budget=budget, end_ids=[END], decoder=Letters())
        return AnswerStream(row, self._say(answer, row))

    def _say(self, answer: str | Exception, row: AnswerRow) -> Iterator[int]:
        given = 0
        try:
            for character in "Mm" if isinstance(answer, Exception) else answer:
                row.take(ord(character))
                yield from row.token_ids[given:]
                given = len(row.token_ids)
                if row.over:
                    return
            if isinstance(answer, Exception):
                raise answer
            row.take(END)
            yield from row.token_ids[given:]
        finally:
            self.closed += 1


class _Processor:
    box_form = None
    form = PLAIN_FORM

    def style(self, version: str | None) -> PromptStyle:
        return PromptStyle("", "", "", "", "as it is", stops=("###",) if version == "llava_v0" else ())

    def stops(self, version: str | None) -> tuple[str, ...]:
        return self.style(version).stops

    def __call__(
        self,
        image: Any,
        query: str,
        *,
        history: Any,
        version: str | None,
        allow_empty_query: bool,
        system: str | None,
        max_tiles: Any,
    ) -> Any:
        if not query and not allow_empty_query:
            raise InputError("The question is empty.")
        return SimpleNamespace(image=image, query=query, history=list(history), version=version, length=7)


class _SpeakingVLM:
    read = VLM.read

    def __init__(self, model_class: str) -> None:
        self.processor, self.config = _Processor(), SimpleNamespace(model_class=model_class)


def session(
    *answers: str | Exception, finish: str = "stop", model_class: str = "CogVLMModel", **kwargs: Any
) -> tuple[ChatSession, SpeakingEngine]:
    """A chat session that gives these answers, and its engine."""
    engine = SpeakingEngine(answers, finish=finish)
    return ChatSession(_SpeakingVLM(model_class), engine=engine, **kwargs), engine
