"""One answer as it is made: its token ids, the pieces of its text, and at the end the whole of it."""

from __future__ import annotations

from collections.abc import Iterator

from sat_models.generation.answer import AnswerRow, FinishReason, GenerationResult


class AnswerStream(Iterator[int]):
    """The token ids of one answer as they are made. Iterate it to the end, or `close` it.

    Args:
        row: the answer.
        source: a generator that drives the model and gives the row's ids; closing it gives the model back.
    """

    def __init__(self, row: AnswerRow, source: Iterator[int]) -> None:
        self._row, self._source = row, source

    def __next__(self) -> int:
        return next(self._source)

    def close(self) -> None:
        """Stop generating, on all processes, and give the model back."""
        getattr(self._source, "close", lambda: None)()

    @property
    def token_ids(self) -> list[int]:
        """Ids that are certain, the end token excluded."""
        return self._row.token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """None until the end, and after `close`."""
        return self._row.finish_reason

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, image included."""
        return self._row.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """How many of them were kept from an earlier prompt and not computed again; known at the first id."""
        return self._row.cached_tokens

    def pieces(self) -> AnswerPieces:
        """The text in pieces as soon as they are certain; never half a character, joined they are the answer's text."""
        return AnswerPieces(self, self._pieces())

    def _pieces(self) -> Iterator[str]:
        try:
            for _ in self:
                if piece := self._row.take_text():
                    yield piece
            if rest := self._row.take_text():
                yield rest
        finally:
            self.close()

    def result(self) -> GenerationResult:
        """The whole answer; what is left of it is read first."""
        for _ in self:
            pass
        return self._row.result()


class AnswerPieces(Iterator[str]):
    """The text of one answer as it is made, and then the answer. Iterate it to the end, or `close` it.

    Args:
        answer: the stream behind it.
        pieces: a generator of its text.
    """

    def __init__(self, answer: AnswerStream, pieces: Iterator[str]) -> None:
        self._answer, self._source = answer, pieces

    def __next__(self) -> str:
        return next(self._source)

    def close(self) -> None:
        """Stop generating and give the model back."""
        self._source.close()

    def result(self) -> GenerationResult:
        """The whole answer; what is left of it is read first. Raises RuntimeError after `close` before the end."""
        for _ in self:
            pass
        return self._answer.result()
