"""Prompts are computed here: those alike together, of one that begins as an earlier one only the rest, and beside rows
that are decoded in pieces.

Legend: G rows of a group, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mixins.image_embedding import ImageEmbedding
from mixins.kv_cache import KVStore
from sat_models.generation.answer import AnswerRow
from sat_models.generation.model import AnsweringModel
from sat_models.generation.rows import FIRST_ROOM
from sat_models.generation.steps.choose import Stepper
from sat_models.processing.layout import collate

MAX_PREFILL_TOKENS = 8192
"""Rows that come together are computed together up to this many tokens, padding included; it bounds the memory."""

Numbered = tuple[int, AnswerRow]


def groups_of(rows: Iterable[Numbered], engine: AnsweringModel) -> list[list[Numbered]]:
    """Rows that are computed together: as many pictures in each, no more tokens than fit into memory.

    A prompt whose beginning is kept is a group of its own.
    """
    kinds: dict[tuple[int, bool], list[Numbered]] = {}
    groups: list[list[Numbered]] = []
    for number, row in rows:
        inputs = row.request.inputs
        row.prefix = engine.prefixes.find(inputs)
        if row.prefix is not None and row.prefix.shared:
            groups.append([(number, row)])
            continue
        images = inputs.vision_image
        kind = (0 if images is None else len(images), inputs.attention_mask is None)
        kinds.setdefault(kind, []).append((number, row))
    for alike in kinds.values():
        alike.sort(key=lambda each: each[1].prompt_tokens)
        group: list[Numbered] = []
        for each in alike:
            if group and (len(group) + 1) * each[1].prompt_tokens > MAX_PREFILL_TOKENS:
                groups.append(group)
                group = []
            group.append(each)
        groups.append(group)
    return groups


def compute_one(row: AnswerRow, engine: AnsweringModel, stepper: Stepper, *, grows: bool) -> tuple[KVStore, Tensor]:
    """One prompt -> its keys and values, and the logits [1, V] after its last token.

    Args:
        grows: the store may be made for the first tokens of the answer; False: for all of it.
    """
    inputs, (store, cached) = row.request.inputs, _begun(row, engine, grows)
    stepper.cache.store = store
    given = _text_behind(row, cached, None, engine) if cached else _whole(row, engine)
    output = engine.model(**given, last_position_only=True, max_position=int(inputs.position_ids.max()))
    store.advance(inputs.length - cached)
    return store, output[0][:, -1]


def _begun(row: AnswerRow, engine: AnsweringModel, grows: bool) -> tuple[KVStore, int]:
    """A store for a prompt and its answer, and how many tokens of it are kept there already."""
    room = row.prompt_tokens + (min(row.budget, FIRST_ROOM) if grows else row.budget)
    store, row.cached_tokens = engine.prefixes.start(row.prefix, room) or (engine.new_store(room), 0)
    return store, row.cached_tokens


def _whole(row: AnswerRow, engine: AnsweringModel) -> dict[str, Any]:
    return row.request.inputs.to(engine.device, engine.float_dtype).model_kwargs()


def _text_behind(row: AnswerRow, start: int, stop: int | None, engine: AnsweringModel) -> dict[str, Any]:
    """Tokens of text from `start` on."""
    inputs = row.request.inputs
    rest = (inputs.input_ids[:, start:stop], inputs.position_ids[..., start:stop])
    return dict(zip(("input_ids", "position_ids"), (part.to(engine.device) for part in rest), strict=True))


def takes_pieces(row: AnswerRow, engine: AnsweringModel, piece: int) -> bool:
    """True if a prompt has more tokens to compute than a piece, and may be computed so.

    It may where each token looks at those before it only, and images enter through the sequence alone.
    """
    inputs = row.request.inputs
    shared = row.prefix.shared if row.prefix is not None else 0
    if inputs.length - shared <= piece or inputs.attention_mask is not None or inputs.cross_image is not None:
        return False
    return inputs.vision_image is None or isinstance(engine.model.mixins["eva"], ImageEmbedding)


class PromptInPieces:
    """A prompt that is computed piece by piece, while rows that are decoded wait for one piece at a time.

    Args:
        number, row: one that `takes_pieces`.
        engine: whose model computes it.
        stepper: whose cache it uses.
        piece: most tokens at a time.
    """

    def __init__(self, number: int, row: AnswerRow, engine: AnsweringModel, stepper: Stepper, piece: int) -> None:
        self.number, self.row = number, row
        self._engine, self._stepper, self._piece = engine, stepper, piece
        self._store: KVStore | None = None
        self._done, self._text_only = 0, row.request.inputs.vision_image is None
        self._given: dict[str, Any] | None = None
        self._features: Tensor | None = None

    def compute(self, *, all_of_it: bool) -> tuple[KVStore, Tensor] | None:
        """The images, or some more tokens; after the last ones what `compute_one` gives.

        Args:
            all_of_it: nobody waits any more.
        """
        inputs = self.row.request.inputs
        if self._store is None:
            self._store, self._done = _begun(self.row, self._engine, grows=True)
            self._text_only = self._text_only or self._done > 0
        if not self._text_only and self._given is None:
            self._encode_images()
            if not all_of_it:
                return None
        stop = inputs.length if all_of_it else min(self._done + self._piece, inputs.length)
        self._stepper.cache.store = self._store
        output = self._engine.model(
            **self._slice(stop), last_position_only=True, max_position=int(inputs.position_ids.max())
        )
        self._store.advance(stop - self._done)
        self._done = stop
        return (self._store, output[0][:, -1]) if stop == inputs.length else None

    def _encode_images(self) -> None:
        self._given = _whole(self.row, self._engine)
        self._features = self._engine.model.mixins["eva"].encoded(self._given.pop("vision_image"))

    def _slice(self, stop: int) -> dict[str, Any]:
        """Arguments of the model for the tokens up to `stop` that are not done."""
        if self._text_only:
            return _text_behind(self.row, self._done, stop, self._engine)
        given = {name: value[..., self._done : stop] for name, value in self._given.items() if value is not None}
        mask = self._given["image_embed_mask"].bool()
        slots = int(mask[:, : self._done].sum()), int(mask[:, :stop].sum())
        if slots[0] == slots[1]:
            return {name: given[name] for name in ("input_ids", "position_ids")}
        return {**given, "image_features": self._features[slots[0] : slots[1]]}


def compute_together(rows: list[AnswerRow], engine: AnsweringModel, stepper: Stepper) -> tuple[KVStore, Tensor]:
    """Prompts of G rows -> their keys and values, each row's first, and the logits [G, V] after the last token of each.

    They are right-padded, so that attention stays causal and the picture stands at the same place in each.
    """
    inputs = collate([row.request.inputs for row in rows], pad_id=0, side="right")
    ends = torch.tensor([row.prompt_tokens - 1 for row in rows], device=engine.device)
    store = engine.new_store(inputs.length)
    stepper.cache.store = store
    given = inputs.to(engine.device, engine.float_dtype).model_kwargs()
    output = engine.model(**given, last_positions=ends, max_position=int(inputs.position_ids.max()))
    store.advance(inputs.length)
    return store, output[0][:, -1]
