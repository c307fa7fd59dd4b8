"""The one loop of decoding: answers in one forward per step, each as if it were alone; a stream is a session of one.

Rows are left-padded: the newest token of every row stands in the same column, each row has a mask and positions of its
own. A row that ends makes place at once; a row that comes is computed by itself, or with those that come together with
it, and put behind.

Legend: R rows, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Self

import torch
from torch import Tensor

from mixins.kv_cache import KVStore
from sat_models.errors import InputError
from sat_models.generation.answer import AnswerRow, Request
from sat_models.generation.model import AnsweringModel
from sat_models.generation.prefill import (
    Numbered,
    PromptInPieces,
    compute_one,
    compute_together,
    groups_of,
    takes_pieces,
)
from sat_models.generation.rows import RowGroup
from sat_models.generation.sampling import NO_TOKEN
from sat_models.generation.scores import score_step
from sat_models.generation.strict.guide import ahead_of
from sat_models.generation.tokens import RowSampler, choose, model_group, not_numbers


class BatchSession:
    """Rows that join and leave between steps. Get one from `Engine.session`, close it (or use `with`).

    ```
    with engine.session(max_rows=16) as session:
        number = session.add(request)                  # any time; waits if max_rows are running
        while session.running:
            session.step()
            print(session[number].take_text())         # what became certain
            for number in session.finished:
                answer = session.remove(number).result()
    ```

    From opening to `close` the model belongs to the session; nothing else can generate from it. Under model parallelism
    all processes of the model make the same calls with the same arguments in the same order (`SharedEngine` does that
    for a server), and get the same tokens. One thread at a time.

    Args:
        engine: whose model, end tokens, limits and kept prefixes are used.
        max_rows: most rows decoded at a time; more may be added, they wait for a place in the order they came.
        piece: tokens of a prompt that are computed at a time while at least as many rows are decoded as wait, one piece
            between two steps, so that streams go on while a long prompt or an image comes. Shorter prompts may pass
            it. None: a prompt is computed whole, which makes more answers an hour and longer pauses.

    Raises:
        RuntimeError: the model is generating already.
    """

    def __init__(self, engine: AnsweringModel, *, max_rows: int = 16, piece: int | None = None) -> None:
        if max_rows < 1:
            raise InputError(f"max_rows is {max_rows}; a batch needs at least 1 row.")
        if piece is not None and piece < 1:
            raise InputError(f"piece is {piece}; a piece of a prompt has at least 1 token.")
        self._engine, self.max_rows, self._piece = engine, max_rows, piece
        self._opening: PromptInPieces | None = None
        self._numbers = itertools.count()
        self._rows: dict[int, AnswerRow] = {}
        self._waiting: dict[int, AnswerRow] = {}
        self._samplers: dict[int, RowSampler] = {}  # of the rows that are decoded
        self._groups: dict[int, RowGroup] = {}
        self._stack = ExitStack()
        self._stepper = self._stack.enter_context(engine.occupied())
        self._processes = model_group()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End all rows and give the model back as it was. May be called again."""
        for number in list(self._samplers):
            self._leave(number)
        self._give_back()

    def _give_back(self) -> None:
        self._closed = True
        self._rows, self._waiting, self._samplers, self._groups, self._opening = {}, {}, {}, {}, None
        self._stack.close()

    @property
    def running(self) -> tuple[int, ...]:
        """Numbers of the rows that are not over, waiting ones included."""
        return tuple(number for number, row in self._rows.items() if not row.over)

    @property
    def finished(self) -> tuple[int, ...]:
        """Numbers of the rows that are over and not removed yet."""
        return tuple(number for number, row in self._rows.items() if row.over)

    def __getitem__(self, number: int) -> AnswerRow:
        """A row that was added and not removed. Raises KeyError."""
        return self._rows[number]

    def add(self, request: Request) -> int:
        """Take in a prompt; it is computed, and gives its first token, at a following `step`.

        Returns:
            The row's number, unique in this session.

        Raises:
            InputError: see `AnsweringModel.row`. Other rows go on.
            RuntimeError: the session is closed.
        """
        self._check_open()
        return self.join(self._engine.row(request))

    def join(self, row: AnswerRow) -> int:
        """As `add`, for a row that the engine made already."""
        self._check_open()
        number = next(self._numbers)
        self._rows[number] = self._waiting[number] = row
        return number

    def step(self) -> dict[int, list[int]]:
        """Compute the rows that came, and one more token of each row that was there.

        Returns:
            {row number: its new token ids, end tokens excluded}: one each, or several where a constraint says that they
            follow. Of a row with stop strings they may yet turn out to belong to one; what belongs to the answer, the
            row knows. Look at `finished`
            afterwards for rows that ended or failed (a failure in one row's prompt, or logits of one row that are not
            numbers, leave the other rows alone). {} when nothing runs.

        Raises:
            RuntimeError: the session is closed.
            Exception: whatever the model raises while it decodes (and under model parallelism in a prompt too); the
                session is closed then.
        """
        self._check_open()
        try:
            with torch.inference_mode():
                self._given = {}
                logits = {key: [self._decode(group)] for key, group in self._groups.items()}
                self._compute_prompts(logits)
                return self._hand_out({key: _joined(parts) for key, parts in logits.items()})
        except BaseException:
            self._give_back()
            raise

    def remove(self, number: int) -> AnswerRow:
        """End a row, or take note of one that is over. Raises KeyError for a number that is not there."""
        row = self._rows.pop(number)
        self._waiting.pop(number, None)
        if self._opening is not None and self._opening.number == number:
            self._opening = None
        self._leave(number, row)
        return row

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this batch session is closed; open another one")

    def _compute_prompts(self, logits: dict[int, list[Tensor]]) -> None:
        """Rows that came join, and one prompt at most gets on by a piece."""
        decoded = len(self._samplers)
        gently = self._piece is not None and len(self._waiting) + (self._opening is not None) <= decoded
        for group in groups_of(self._next_rows(gently), self._engine):
            self._prefill(group, logits)
        if self._opening is not None:
            self._open_further(logits, all_of_it=not gently)

    def _next_rows(self, gently: bool) -> Iterator[Numbered]:
        """Waiting rows for which there is place, but for a long one, which is opened, and those that wait for that."""
        places = self.max_rows - len(self._samplers) - (self._opening is not None)
        for number, row in list(self._waiting.items()):
            if places <= 0:
                break
            if gently and self._is_long(row):
                if self._opening is not None:
                    continue
                del self._waiting[number]
                row.prefix = self._engine.prefixes.find(row.request.inputs)  # another may be kept by now
                self._opening = PromptInPieces(number, row, self._engine, self._stepper, self._piece)
            else:
                yield number, self._waiting.pop(number)
            places -= 1

    def _is_long(self, row: AnswerRow) -> bool:
        if row.prefix is None:
            row.prefix = self._engine.prefixes.find(row.request.inputs)
        return takes_pieces(row, self._engine, self._piece)

    def _open_further(self, logits: dict[int, list[Tensor]], *, all_of_it: bool) -> None:
        opening = self._opening
        try:
            computed = opening.compute(all_of_it=all_of_it)
        except Exception as error:
            if self._processes is not None:
                raise  # another process may be elsewhere
            opening.row.error, self._opening = error, None
            return
        if computed is not None:
            self._opening = None
            self._join([(opening.number, opening.row)], *computed, logits)

    def _prefill(self, group: list[Numbered], logits: dict[int, list[Tensor]]) -> None:
        """Compute prompts and let their rows join. Failing together, they are tried one by one."""
        first = group[0][1]
        try:
            if len(group) == 1:
                store, last = compute_one(first, self._engine, self._stepper, grows=self.max_rows > 1)
            else:
                store, last = compute_together([row for _, row in group], self._engine, self._stepper)
        except Exception as error:
            if self._processes is not None:
                raise  # another process may be elsewhere
            if len(group) > 1:
                for each in group:
                    self._prefill([each], logits)
            else:
                first.error = error
            return
        self._join(group, store, last, logits)

    def _join(self, group: list[Numbered], store: KVStore, last: Tensor, logits: dict[int, list[Tensor]]) -> None:
        """Computed prompts, and the logits after each, go to the rows that are decoded."""
        cross = group[0][1].request.inputs.cross_image
        key = 0 if cross is None else len(cross)  # rows with other numbers of high-resolution pictures decode apart
        if key not in self._groups:
            self._groups[key] = RowGroup(self._engine.model, self._engine.device, self._engine.new_store(0))
        for index, (number, row) in enumerate(group):
            self._groups[key].join(number, row, store, index if len(group) > 1 else None)
            asked = row.request
            counted = asked.inputs.input_ids if asked.counts_prompt else None
            self._samplers[number] = RowSampler(asked.options, self._engine.device, counted, row.guide)
        logits.setdefault(key, []).append(last)

    def _decode(self, group: RowGroup) -> Tensor:
        """Logits [R, V] behind the newest tokens of a group, or behind those that follow them whatever is chosen."""
        rows = [self._rows[number] for number in group.rows]
        ahead = ahead_of((row.guide for row in rows), self._stepper.worth(len(rows)))
        if ahead is None:
            return group.decode(self._stepper)
        logits = group.decode_ahead(self._stepper, ahead.to(self._engine.device))
        for place, tokens in enumerate(ahead.to(logits.device).unbind(1)):
            self._note_scores(group.rows, logits[:, place], tokens)
        for number, row, tokens in zip(group.rows, rows, ahead, strict=True):
            self._samplers[number].note(tokens.to(logits.device))
            self._given[number] = tokens.tolist()
            for token in self._given[number]:
                row.take(token)
        return logits[:, -1]

    def _hand_out(self, logits: dict[int, Tensor]) -> dict[int, list[int]]:
        """Choose a token for each row; the one place where the host waits for the device."""
        if not logits:
            return {}
        groups = [self._groups[key] for key in logits]
        numbers = [number for group in groups for number in group.rows]
        everything = _joined(list(logits.values()))
        tokens = choose(everything, [self._samplers[number] for number in numbers], self._processes)
        if len(groups) == 1:
            groups[0].feed(tokens)
        else:
            for group, part in zip(groups, tokens.split([len(group.rows) for group in groups]), strict=True):
                group.feed(part)
        self._note_scores(numbers, everything, tokens)
        for number, token in zip(numbers, tokens.tolist(), strict=True):
            row = self._rows[number]
            if token == NO_TOKEN:
                row.error = (row.guide and row.guide.failure) or not_numbers(everything.dtype)
            else:
                row.take(token)
                if token not in self._engine.end_ids:
                    self._given.setdefault(number, []).append(token)
            if row.over:
                self._leave(number)
        return self._given

    def _note_scores(self, numbers: list[int], logits: Tensor, tokens: Tensor) -> None:
        """What the model says of the tokens, for the rows that asked."""
        scored = {place: row.scores for place, number in enumerate(numbers) if (row := self._rows[number]).scores}
        if scored:
            step = score_step(logits, tokens, list(scored), max(scores.top for scores in scored.values()))
            for row, scores in enumerate(scored.values()):
                scores.note(step, row)

    @torch.inference_mode()
    def _leave(self, number: int, row: AnswerRow | None = None) -> None:
        """Take a row out of its group, if it is in one, and keep its prompt for others."""
        if self._samplers.pop(number, None) is None:
            return
        row = row or self._rows[number]
        key, group = next((key, group) for key, group in self._groups.items() if number in group.rows)
        prefixes = self._engine.prefixes
        if row.error is None and row.prefix is not None and prefixes.fits(group.bytes_of(number)):
            prefixes.keep(row.prefix, row.sampled, group.cache_of(number))
        group.leave(number)
        if not group.rows:
            del self._groups[key]


def _joined(parts: list[Tensor]) -> Tensor:
    """[R, V] of all parts; one part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
