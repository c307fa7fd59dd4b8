"""The mixin "auto-regressive": a bounded, preallocated key/value cache.

Legend: B batch, N heads on this rank, S new tokens, T cached tokens, C columns of the storage, H head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mixins.base import ZooModel
from mixins.cache_form import CacheForm
from mixins.sat_compat import BaseMixin, non_conflict

CACHE_NAME = "auto-regressive"

CrossMemory = list[tuple[Tensor, Tensor] | None]
"""Keys and values of cross-attention, each [B, N, patches, H], by layer; None for a layer without it."""


class KVStore:
    """Keys and values of every layer: plain tensors, which may outlive the mixin that fills them.

    Storage is allocated at the first write, once for `max_length` tokens; places not yet written hold zeros. `length`
    counts the tokens of finished forwards. Keys and values of cross-attention belong to the picture, not to tokens: the
    last ones made are kept until the store is emptied.

    Args:
        num_layers: of the language model.
        max_length: most tokens of a row.
        form: how they are kept; cross-attention's are kept as they are.
    """

    def __init__(self, num_layers: int, max_length: int, form: CacheForm = CacheForm.MODEL) -> None:
        self.num_layers, self.max_length, self.length, self.form = num_layers, max_length, 0, form
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers
        self.cross: CrossMemory = [None] * num_layers

    def append(self, layer_id: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k and v [B, N, S, H] behind what layer `layer_id` has; all of it as it is kept, [B, N, T + S, H] each.

        Raises:
            ValueError: more tokens than there is room for.
        """
        stop = self.length + k.shape[2]
        if stop > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens, but {stop} are needed")
        if self.keys[layer_id] is None:
            shape = (*k.shape[:2], self.max_length)
            self.keys[layer_id], self.values[layer_id] = self.form.room(k, *shape), self.form.room(v, *shape)
        keys, values = self.keys[layer_id], self.values[layer_id]
        if (rows := k.shape[0]) < keys.shape[0]:
            keys, values = keys[:rows], values[:rows]
        keys.narrow(2, self.length, k.shape[2]).copy_(self.form.kept(k))
        values.narrow(2, self.length, k.shape[2]).copy_(self.form.kept(v))
        return self.form.read(keys.narrow(2, 0, stop), k.dtype), self.form.read(values.narrow(2, 0, stop), v.dtype)

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as cached, after a forward over them."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length
        if length == 0:
            self.cross = [None] * self.num_layers

    def resize(self, rows: int, max_length: int) -> None:
        """Make room for other numbers of rows and tokens. What is cached stays; new places hold zeros."""
        for parts in (self.keys, self.values):
            for layer, old in enumerate(parts):
                if old is not None:
                    kept = min(rows, old.shape[0])
                    parts[layer] = old.new_zeros(rows, old.shape[1], max_length, old.shape[3])
                    parts[layer][:kept, :, : self.length] = old[:kept, :, : self.length]
        self.max_length = max_length

    def shift(self, columns: int) -> None:
        """Move what is cached to the right, or to the left over its first columns if negative."""
        length = self.length + columns
        if not 0 <= length <= self.max_length:
            raise ValueError(f"cannot shift {self.length} tokens by {columns} in a cache of {self.max_length}")
        start, target = max(-columns, 0), max(columns, 0)
        for part in (*self.keys, *self.values):
            if part is not None:
                part[:, :, target:length] = part[:, :, start : self.length].clone()
                part[:, :, :target] = 0
        self.length = length

    def copy_row(self, slot: int, source: KVStore, row: int, length: int) -> None:
        """Let the first `length` tokens of a row of `source` be the last ones of row `slot`; its others are zero.

        Cross-attention memory is put behind that of the rows before `slot`.
        """
        start = self.length - length
        for mine, theirs in ((self.keys, source.keys), (self.values, source.values)):
            for layer, part in enumerate(theirs):
                if mine[layer] is None:
                    mine[layer] = part.new_zeros(slot + 1, part.shape[1], self.max_length, part.shape[3])
                mine[layer][slot, :, :start] = 0
                mine[layer][slot, :, start : self.length] = part[row, :, :length]
        for layer, memory in enumerate(source.cross):
            if memory is not None:
                own = self.cross[layer]
                new = tuple(part[row : row + 1] for part in memory)
                self.cross[layer] = tuple(map(torch.cat, zip(own, new, strict=True))) if own and slot else new

    def extract(self, row: int, start: int, stop: int, *, max_length: int) -> KVStore:
        """A store of its own, for `max_length` tokens, with the tokens `start` to `stop` of a row."""
        taken = KVStore(self.num_layers, max_length, self.form)
        taken.length = stop - start
        for mine, theirs in ((self.keys, taken.keys), (self.values, taken.values)):
            for layer, part in enumerate(mine):
                if part is not None:
                    theirs[layer] = part.new_zeros(1, part.shape[1], max_length, part.shape[3])
                    theirs[layer][0, :, : taken.length] = part[row, :, start:stop]
        taken.cross = [memory and tuple(part[row : row + 1].clone() for part in memory) for memory in self.cross]
        return taken

    @property
    def nbytes(self) -> int:
        """Memory of keys and values, those of cross-attention included."""
        cross = [part for memory in self.cross if memory is not None for part in memory]
        return sum(part.nbytes for part in (*self.keys, *self.values, *cross) if part is not None)

    def drop_row(self, slot: int, last: int) -> None:
        """Put row `last`, the last one in use, into the place of row `slot`."""
        for part in (*self.keys, *self.values):
            if part is not None and slot != last:
                part[slot, :, : self.length] = part[last, :, : self.length]
        for layer, memory in enumerate(self.cross):
            if memory is not None:
                if slot != last:
                    for part in memory:
                        part[slot] = part[last]
                self.cross[layer] = tuple(part[:last] for part in memory)


class KVCacheMixin(BaseMixin):
    """Appends each layer's keys and values to a store and attends over all of them.

    `advance` is called by whoever drives the model after each forward.

    Attributes:
        store: where they go; it may be exchanged between forwards.
    """

    def __init__(self, num_layers: int, max_length: int) -> None:
        super().__init__()
        self.store = KVStore(num_layers, max_length)

    @non_conflict
    def attention_fn(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_fn: Any, *, old_impl: Any, **kw: Any
    ) -> Tensor:
        """q, k, v [B, N, S, H] -> [B, N, S, H], attending to the T + S keys seen so far."""
        layer_id = int(kw["layer_id"])
        if kw.get("cross_attention"):
            k, v = k.contiguous(), v.contiguous()
            self.store.cross[layer_id] = (k, v)
        else:
            k, v = self.store.append(layer_id, k, v)
        return old_impl(q, k, v, mask, dropout_fn, **kw)

    @property
    def length(self) -> int:
        """Tokens cached."""
        return self.store.length

    @property
    def max_length(self) -> int:
        """Most tokens that the store holds."""
        return self.store.max_length

    @property
    def cross_memory(self) -> CrossMemory | None:
        """Keys and values that later forwards read instead of the picture; None before there was one."""
        return self.store.cross if any(self.store.cross) else None

    def advance(self, tokens: int) -> None:
        """As `KVStore.advance`."""
        self.store.advance(tokens)

    def truncate(self, length: int) -> None:
        """As `KVStore.truncate`."""
        self.store.truncate(length)


@contextmanager
def kv_cache(model: ZooModel, max_length: int) -> Iterator[KVCacheMixin]:
    """Give `model` a cache for the time of the block; whatever happens inside, it is taken off again."""
    cache = KVCacheMixin(len(model.transformer.layers), max_length)
    model.add_mixin(CACHE_NAME, cache)
    try:
        yield cache
    finally:
        model.del_mixin(CACHE_NAME)
