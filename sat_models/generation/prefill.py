"""Prompts are computed here: those alike together, and of one that begins as an earlier one only the rest.

Legend: G rows of a group, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

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
    inputs = row.request.inputs
    room = inputs.length + (min(row.budget, FIRST_ROOM) if grows else row.budget)
    store, cached = engine.prefixes.start(row.prefix, room) or (engine.new_store(room), 0)
    row.cached_tokens = cached
    stepper.cache.store = store
    if cached:  # what is left is text
        rest = (inputs.input_ids[:, cached:], inputs.position_ids[..., cached:])
        given = dict(zip(("input_ids", "position_ids"), (part.to(engine.device) for part in rest), strict=True))
    else:
        given = inputs.to(engine.device, engine.float_dtype).model_kwargs()
    output = engine.model(**given, last_position_only=True, max_position=int(inputs.position_ids.max()))
    store.advance(inputs.length - cached)
    return store, output[0][:, -1]


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
