"""Several answers decoded in one forward per step, each as if it were alone.

Rows are left-padded: the newest token of every row stands in the same column, each row has a mask and positions of its
own. A row that ends makes place at once; a row that comes is computed by itself (several that come together: right-
padded, so that attention stays causal and the picture stands at the same place in each) and put behind.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from mixins.kv_cache import KVStore
from sat_models.errors import InputError
from sat_models.generation.results import FinishReason, GenerationResult
from sat_models.generation.rows import Lane
from sat_models.generation.sampling import NO_TOKEN, SamplingOptions
from sat_models.generation.tokens import RowSampler, choose, model_group, not_numbers
from sat_models.processing.inputs import VLMInputs
from sat_models.processing.layout import collate
from sat_models.processing.tokens import Tokenizer

if TYPE_CHECKING:
    from sat_models.generation.engine import Engine

MAX_PREFILL_TOKENS = 8192
"""Rows that come together are computed together up to this many tokens, padding included; it bounds the memory."""


@dataclass
class BatchRow:
    """One answer of a batch.

    Attributes:
        number: what `BatchSession.add` gave.
        prompt_tokens: tokens of the prompt, image included.
        token_ids: what was generated so far, the end token excluded.
        finish_reason: "stop": the model ended; "length": its limit cut it off; None: it runs, was removed, or failed.
        error: why it failed, else None.
    """

    number: int
    prompt_tokens: int
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: Exception | None = None

    @property
    def over(self) -> bool:
        """Whether no token follows."""
        return self.finish_reason is not None or self.error is not None

    def result(self, tokenizer: Tokenizer) -> GenerationResult:
        """The answer with its text. Raises `error` if there is one."""
        if self.error is not None:
            raise self.error
        text = tokenizer.decode(self.token_ids)
        return GenerationResult(text, list(self.token_ids), self.finish_reason or "stop", self.prompt_tokens)


@dataclass(frozen=True)
class _Asked:
    """What a row was asked: its prompt, how it chooses, how many tokens it may give."""

    row: BatchRow
    inputs: VLMInputs
    sampler: RowSampler
    budget: int


class BatchSession:
    """Rows that join and leave between steps. Get one from `Engine.session`, close it (or use `with`).

    ```
    with engine.session(max_rows=16) as session:
        number = session.add(inputs, options)          # any time; waits if max_rows are running
        while session.running:
            for number, token in session.step().items():
                ...                                    # one new token of each row that has one
            for number in session.finished:
                row = session.remove(number)           # token_ids, finish_reason or error
    ```

    From opening to `close` the model belongs to the session; nothing else can generate from it. Under model parallelism
    all processes of the model make the same calls with the same arguments in the same order (`SharedEngine.session`
    does that for a server), and get the same tokens. One thread at a time.

    Args:
        engine: whose model, end tokens and limits are used.
        max_rows: most rows decoded at a time; more may be added, they wait for a place in the order they came.

    Raises:
        RuntimeError: the model is generating already.
    """

    def __init__(self, engine: Engine, *, max_rows: int = 16) -> None:
        if max_rows < 1:
            raise InputError(f"max_rows is {max_rows}; a batch needs at least 1 row.")
        self._engine, self.max_rows = engine, max_rows
        self._numbers = itertools.count()
        self._rows: dict[int, BatchRow] = {}
        self._waiting: dict[int, _Asked] = {}
        self._asked: dict[int, _Asked] = {}
        self._lanes: dict[int, Lane] = {}
        self._stack = ExitStack()
        self._stepper = self._stack.enter_context(engine.occupied())
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End all rows and give the model back as it was. May be called again."""
        self._closed = True
        self._rows, self._waiting, self._asked, self._lanes = {}, {}, {}, {}
        self._stack.close()

    @property
    def running(self) -> tuple[int, ...]:
        """Numbers of the rows that are not over, waiting ones included."""
        return tuple(number for number, row in self._rows.items() if not row.over)

    @property
    def finished(self) -> tuple[int, ...]:
        """Numbers of the rows that are over and not removed yet."""
        return tuple(number for number, row in self._rows.items() if row.over)

    def __getitem__(self, number: int) -> BatchRow:
        """The state of a row that was added and not removed. Raises KeyError."""
        return self._rows[number]

    def add(self, inputs: VLMInputs, options: SamplingOptions | None = None) -> int:
        """Take in a prompt; it is computed, and gives its first token, at a following `step`.

        Args:
            inputs: one prompt (batch of one), on any device.
            options: how to choose tokens and when to stop.

        Returns:
            The row's number, unique in this session.

        Raises:
            InputError: several prompts, or one that leaves no room for an answer. Other rows go on.
            RuntimeError: the session is closed.
        """
        self._check_open()
        options = options or SamplingOptions()
        budget = self._engine.budget(inputs, options)
        row = BatchRow(next(self._numbers), inputs.length)
        sampler = RowSampler(options, self._engine.device)
        self._rows[row.number] = row
        self._waiting[row.number] = _Asked(row, inputs, sampler, budget)
        return row.number

    def step(self) -> dict[int, int]:
        """Compute the rows that came, and one more token of each row that was there.

        Returns:
            {row number: token id} for each row with a new token. A row that ends with the end token gives none; look
            at `finished` afterwards for rows that ended or failed (a failure in one row's prompt, or logits of one row
            that are not numbers, leave the other rows alone). {} when nothing runs.

        Raises:
            RuntimeError: the session is closed.
            Exception: whatever the model raises while it decodes (and under model parallelism in a prompt too); the
                session is closed then.
        """
        self._check_open()
        try:
            with torch.inference_mode():
                logits = {key: [lane.decode(self._stepper)] for key, lane in self._lanes.items()}
                for group in self._next_groups():
                    self._prefill(group, logits)
                return self._hand_out({key: torch.cat(parts) for key, parts in logits.items()})
        except BaseException:
            self.close()
            raise

    def remove(self, number: int) -> BatchRow:
        """End a row, or take note of one that is over; its state. Raises KeyError for a number that is not there."""
        row = self._rows.pop(number)
        self._waiting.pop(number, None)
        self._leave(number)
        return row

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this batch session is closed; open another one")

    def _next_groups(self) -> list[list[_Asked]]:
        """Waiting rows for which there is place: those alike together, in groups that fit into memory."""
        free = self.max_rows - len(self._asked)
        kinds: dict[tuple[int, bool], list[_Asked]] = {}
        for asked in list(itertools.islice(self._waiting.values(), free)):
            del self._waiting[asked.row.number]
            pictures = asked.inputs.vision_image
            kind = (0 if pictures is None else len(pictures), asked.inputs.attention_mask is None)
            kinds.setdefault(kind, []).append(asked)
        groups: list[list[_Asked]] = []
        for alike in kinds.values():
            alike.sort(key=lambda asked: asked.inputs.length)
            group: list[_Asked] = []
            for asked in alike:
                if group and (len(group) + 1) * asked.inputs.length > MAX_PREFILL_TOKENS:
                    groups.append(group)
                    group = []
                group.append(asked)
            groups.append(group)
        return groups

    def _prefill(self, group: list[_Asked], logits: dict[int, list[Tensor]]) -> None:
        """Compute prompts and let their rows join. Failing together, they are tried one by one."""
        try:
            store, last = self._compute(group)
        except Exception as error:
            if model_group() is not None:
                raise  # another process may be elsewhere
            if len(group) > 1:
                for asked in group:
                    self._prefill([asked], logits)
            else:
                group[0].row.error = error
            return
        cross = group[0].inputs.cross_image
        key = 0 if cross is None else len(cross)  # rows with other numbers of high-resolution pictures decode apart
        lane = self._lanes.setdefault(key, Lane(self._engine.model, self._engine.device))
        for index, asked in enumerate(group):
            lane.join(asked.row.number, store, index, asked.inputs, asked.budget)
            self._asked[asked.row.number] = asked
        logits.setdefault(key, []).append(last)

    def _compute(self, group: list[_Asked]) -> tuple[KVStore, Tensor]:
        """Prompts of G rows -> their keys and values, and the logits [G, V] after the last token of each."""
        inputs = collate([asked.inputs for asked in group], pad_id=0, side="right")
        highest = int(inputs.position_ids.max())
        ends = torch.tensor([asked.inputs.length - 1 for asked in group], device=self._engine.device)
        store = KVStore(len(self._engine.model.transformer.layers), inputs.length)
        self._stepper.cache.store = store
        given = inputs.to(self._engine.device, self._engine.float_dtype).model_kwargs()
        output = self._engine.model(**given, last_positions=ends, max_position=highest)
        store.advance(inputs.length)
        return store, output[0][:, -1]

    def _hand_out(self, logits: dict[int, Tensor]) -> dict[int, int]:
        """Choose a token for each row; the one place where the host waits for the device."""
        if not logits:
            return {}
        numbers = [number for key in logits for number in self._lanes[key].rows]
        everything = torch.cat(list(logits.values()))
        tokens = choose(everything, [self._asked[number].sampler for number in numbers])
        for key, part in zip(logits, tokens.split([len(part) for part in logits.values()]), strict=True):
            self._lanes[key].feed(part)
        given: dict[int, int] = {}
        for number, token in zip(numbers, tokens.tolist(), strict=True):
            if self._take(self._asked[number], token, everything.dtype):
                given[number] = token
            if self._rows[number].over:
                self._leave(number)
        return given

    def _take(self, asked: _Asked, token: int, dtype: torch.dtype) -> bool:
        """Note a row's token, and whether it is over; True if the token belongs to the answer."""
        row = asked.row
        if token == NO_TOKEN:
            row.error = not_numbers(dtype)
        elif token in self._engine.eos_ids:
            row.finish_reason = "stop"
        else:
            row.token_ids.append(token)
            if len(row.token_ids) == asked.budget:
                row.finish_reason = "length"
            return True
        return False

    @torch.inference_mode()
    def _leave(self, number: int) -> None:
        """Take a row out of its lane, if it is in one."""
        if self._asked.pop(number, None) is None:
            return
        for key, lane in list(self._lanes.items()):
            if number in lane.rows:
                lane.leave(number)
            if not lane.rows:
                del self._lanes[key]
