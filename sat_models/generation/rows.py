"""Rows that are decoded in one forward: their caches side by side, aligned at the newest token.

Legend: B rows, T cached tokens, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixins.kv_cache import KVStore
from sat_models.generation.steps.choose import Stepper
from sat_models.processing.inputs import VLMInputs

_ROOM = 64
"""Columns that a growing cache has free at least."""


class Lane:
    """The rows' cache, masks, positions and newest tokens.

    All that a step reads is on the device already, unless rows came or left since the last one.

    Attributes:
        rows: numbers of the rows, in the order of the batch dimension.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.rows: list[int] = []
        self._model, self._device = model, device
        self._store = KVStore(len(model.transformer.layers), 0)
        self._places = 0
        self._starts: list[int] = []  # of each row: columns of padding before it
        self._highest: list[int] = []  # of each row: upper bound of the next token's position ids
        self._hides: list[Tensor | None] = []  # of each row: which tokens of its prompt may be looked at; None: all
        self._changed = True
        self._mask: Tensor | None = None
        self._position_ids: Tensor | None = None
        self._ids = torch.empty(0, dtype=torch.long, device=device)

    def join(self, number: int, source: KVStore, index: int, prompt: VLMInputs, budget: int) -> None:
        """Put a computed prompt behind the others.

        Args:
            number: the row's.
            source: where its keys and values are.
            index: its row there; its tokens are the first ones of the row.
            prompt: what it was made of, a batch of one.
            budget: most tokens that it may generate.
        """
        length = prompt.length
        slot = len(self.rows)
        if slot == 0:
            self._store.max_length = length + min(budget, 4 * _ROOM)
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
        self.rows.append(number)
        self._starts.append(self._store.length - length)
        self._highest.append(int(prompt.position_ids.max()) + 1)
        visible = None if prompt.attention_mask is None else prompt.attention_mask[0, 0, -1].bool().cpu()
        self._hides.append(None if visible is None or visible.all() else visible)
        following = self._model.next_positions(prompt.position_ids).to(self._device)
        self._position_ids = following if slot == 0 else torch.cat((self._position_ids, following))
        self._changed = True

    def leave(self, number: int) -> None:
        """Take a row out; the last one gets its place."""
        slot, last = self.rows.index(number), len(self.rows) - 1
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
        self._reserve(self._store.length + 1)
        if self._changed:
            self._refresh()
        columns = self._store.length + 1
        stepper.cache.store = self._store
        visible = None if self._mask is None else self._mask[..., :columns]
        logits = stepper(self._ids, self._position_ids, visible, max_position=max(self._highest))
        self._position_ids = self._model.next_positions(self._position_ids)
        self._highest = [position + 1 for position in self._highest]
        return logits

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
