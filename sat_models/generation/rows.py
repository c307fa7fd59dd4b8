"""Rows that are decoded in one forward: their caches side by side, aligned at the newest token.

Legend: B rows, T cached tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixins.kv_cache import KVStore
from sat_models.generation.answer import AnswerRow
from sat_models.generation.steps.choose import Stepper

_ROOM = 64
"""Columns that a growing cache has free at least."""
FIRST_ROOM = 4 * _ROOM
"""Columns for an answer that a cache has free at first, where others may join; most answers need no more."""


class RowGroup:
    """The rows' cache, masks, positions and newest tokens.

    All that a step reads is on the device already, unless rows came or left since the last one.

    Args:
        model: what answers.
        device: where it lies.
        store: an empty one, for the rows that come.

    Attributes:
        rows: numbers of the rows, in the order of the batch dimension.
    """

    def __init__(self, model: nn.Module, device: torch.device, store: KVStore) -> None:
        self.rows: list[int] = []
        self._model, self._device = model, device
        self._store = store
        self._places = 0
        self._starts: list[int] = []  # of each row: columns of padding before it
        self._highest: list[int] = []  # of each row: upper bound of the next token's position ids
        self._hides: list[Tensor | None] = []  # of each row: which tokens of its prompt may be looked at; None: all
        self._changed = True
        self._mask: Tensor | None = None
        self._position_ids: Tensor | None = None
        self._ids = torch.empty(0, dtype=torch.long, device=device)

    def join(self, number: int, row: AnswerRow, source: KVStore, index: int | None = None) -> None:
        """Put a computed prompt behind the others.

        Args:
            number: the row's.
            row: what it was asked.
            source: where keys and values of its prompt are.
            index: its row there; its tokens are the first ones of that row. None: there is no other row, and the
                store may become that of the group.
        """
        prompt, slot = row.request.inputs, len(self.rows)
        length = prompt.length
        if slot == 0 and index is None:
            self._store, self._places = source, 1
        else:
            self._copy_in(source, index or 0, length, row.budget)
        self.rows.append(number)
        self._starts.append(self._store.length - length)
        self._highest.append(int(prompt.position_ids.max()) + 1)
        visible = None if prompt.attention_mask is None else prompt.attention_mask[0, 0, -1].bool().cpu()
        self._hides.append(None if visible is None or visible.all() else visible)
        following = self._model.next_positions(prompt.position_ids).to(self._device)
        self._position_ids = following if slot == 0 else torch.cat((self._position_ids, following))
        self._changed = True

    def _copy_in(self, source: KVStore, index: int, length: int, budget: int) -> None:
        slot = len(self.rows)
        if slot == 0:
            self._store.max_length = length + min(budget, FIRST_ROOM)
            self._store.length = length
        if length > self._store.length:
            wider = length - self._store.length
            self._grow(length)
            self._store.shift(wider)
            self._starts = [start + wider for start in self._starts]
        if slot >= self._places:
            self._places = max(2 * self._places, 1)
            self._store.resize(self._places, self._store.max_length)
        self._store.copy_row(slot, source, index, length)

    def bytes_of(self, number: int) -> int:
        """Memory of a row's keys and values."""
        tokens = self._store.length - self._starts[self.rows.index(number)]
        return self._store.nbytes * tokens // (self._places * self._store.max_length)

    def cache_of(self, number: int) -> KVStore:
        """A row's keys and values; the row must `leave` at once, since they may be the group's own."""
        slot = self.rows.index(number)
        start = self._starts[slot]
        if self._places == 1 and start == 0:
            return self._store
        return self._store.extract(slot, start, self._store.length, max_length=self._store.length - start)

    def leave(self, number: int) -> None:
        """Take a row out; the last one gets its place. A group without rows is done with."""
        slot, last = self.rows.index(number), len(self.rows) - 1
        if last == 0:
            self.rows = []
            return
        self._store.drop_row(slot, last)
        for kept in (self.rows, self._starts, self._highest, self._hides):
            kept[slot] = kept[last]
            kept.pop()
        order = torch.tensor([last if row == slot else row for row in range(last)], dtype=torch.long).to(self._device)
        self._ids, self._position_ids = self._ids[order], self._position_ids[order]
        self._changed = True

    def feed(self, tokens: Tensor) -> None:
        """The newest token of each row, [B] on the device."""
        self._ids = tokens

    def decode(self, stepper: Stepper) -> Tensor:
        """One forward over the newest tokens -> logits [B, V]."""
        visible = self._ready(stepper, 1)
        logits = stepper(self._ids, self._position_ids, visible, max_position=max(self._highest))
        self._position_ids = self._model.next_positions(self._position_ids)
        self._highest = [position + 1 for position in self._highest]
        return logits

    def decode_ahead(self, stepper: Stepper, ahead: Tensor) -> Tensor:
        """One forward over the newest tokens, and over those that follow them anyway.

        Args:
            ahead: [B, S], on the device.

        Returns:
            Logits [B, 1 + S, V], behind each token.
        """
        count = ahead.shape[1]
        visible = self._ready(stepper, 1 + count)
        positions = [self._position_ids]
        for _ in range(count):
            positions.append(self._model.next_positions(positions[-1]))
        ids, places = torch.cat((self._ids[:, None], ahead), dim=1), torch.cat(positions, dim=-1)
        logits = stepper.together(ids, places, visible, max_position=max(self._highest) + count)
        self._position_ids = self._model.next_positions(positions[-1])
        self._highest = [position + 1 + count for position in self._highest]
        return logits

    def _ready(self, stepper: Stepper, count: int) -> Tensor | None:
        """Make room for `count` more tokens of each row; which columns may be looked at, None: all."""
        self._reserve(self._store.length + count)
        if self._changed:
            self._refresh()
        stepper.cache.store = self._store
        return None if self._mask is None else self._mask[..., : self._store.length + count]

    def _reserve(self, columns: int) -> None:
        """Make room for this many columns: drop padding that all rows share, then grow."""
        spare = min(self._starts)
        if columns > self._store.max_length and spare:
            self._store.shift(-spare)
            self._starts = [start - spare for start in self._starts]
            self._changed = True
            columns -= spare
        self._grow(columns)

    def _grow(self, columns: int) -> None:
        if columns > self._store.max_length:
            self._store.resize(self._places, columns + max(columns // 4, _ROOM))
            self._changed = True

    def _refresh(self) -> None:
        """Bring what changed on the host to the device."""
        self._mask, self._changed = None, False
        if not any(self._starts) and not any(visible is not None for visible in self._hides):
            return
        columns = torch.arange(self._store.max_length)
        mask = columns >= torch.tensor(self._starts)[:, None]
        for row, (start, visible) in enumerate(zip(self._starts, self._hides, strict=True)):
            if visible is not None:
                mask[row, start : start + len(visible)] = visible
        self._mask = mask[:, None, None].to(self._device)
