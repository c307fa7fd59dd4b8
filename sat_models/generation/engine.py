"""Requests in, answers out: one by one, streamed, or in batches.

The engine knows no files, terminals or HTTP. Under model parallelism every process of a group runs the same engine; the
first one chooses the tokens, the others receive them, so they never disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sat_models.generation.answer import AnswerRow, GenerationResult, Request
from sat_models.generation.model import AnsweringModel
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.session import BatchSession
from sat_models.generation.stream import AnswerStream
from sat_models.generation.tokens import hand_out, model_group
from sat_models.processing.inputs import VLMInputs


class Engine(AnsweringModel):
    """Answers from one model; its arguments are those of `AnsweringModel`."""

    def session(self, *, max_rows: int = 16, piece: int | None = None) -> BatchSession:
        """Answers that are decoded together, each of which may join and leave at any step: see `BatchSession`."""
        return BatchSession(self, max_rows=max_rows, piece=piece)

    def stream(self, request: Request) -> AnswerStream:
        """Start an answer. The request is checked now; the model runs when the first token is asked for.

        Raises:
            InputError: see `AnsweringModel.row`.
        """
        row = self.row(request)
        return AnswerStream(row, self._run(row))

    def tokens(self, inputs: VLMInputs, options: SamplingOptions | None = None) -> AnswerStream:
        """`stream` for a prompt that ends at an end token or a limit alone."""
        return self.stream(Request(inputs, options or SamplingOptions()))

    def answer(self, request: Request) -> GenerationResult:
        """One whole answer.

        Raises:
            InputError: see `AnsweringModel.row`.
            ZooError: logits that are not numbers.
        """
        return self.stream(request).result()

    def answers(self, requests: Sequence[Request], *, max_rows: int = 16) -> list[GenerationResult]:
        """Answer several requests together; each answer is that of `answer`.

        Args:
            requests: with or without pictures, of any length.
            max_rows: how many are decoded at a time; memory for keys and values grows with it.

        Raises:
            InputError: see `AnsweringModel.row`.
            ZooError: logits that are not numbers.
        """
        with self.session(max_rows=max_rows) as session:
            numbers = [session.add(request) for request in requests]
            while session.running:
                session.step()
            return [session.remove(number).result() for number in numbers]

    def _run(self, row: AnswerRow) -> Iterator[int]:
        with self.session(max_rows=1) as session:
            session.join(row)
            ids, processes = certain_ids(session, row), model_group()
            if processes is None:
                yield from ids
                return
            for token in ids:
                if not (yield from hand_out(token, self.device, processes)):
                    return


def certain_ids(session: BatchSession, row: AnswerRow) -> Iterator[int]:
    """Step until a row is over; its ids as they become certain.

    Args:
        session: with `row` in it, and `step`.

    Raises:
        Exception: what the row failed with.
    """
    given = 0
    while not row.over:
        session.step()
        ids = row.token_ids
        while given < len(ids):
            given += 1
            yield ids[given - 1]
    if row.error is not None:
        raise row.error
