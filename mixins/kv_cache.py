"""The mixin "auto-regressive": a bounded, preallocated key/value cache.

Legend: B batch, N heads on this rank, S new tokens, T cached tokens, H head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mixins.base import ZooModel
from mixins.sat_compat import BaseMixin, non_conflict

CACHE_NAME = "auto-regressive"

CrossMemory = list[tuple[Tensor, Tensor] | None]
"""Keys and values of cross-attention, each [B, N, patches, H], by layer; None for a layer without it."""


class KVCacheMixin(BaseMixin):
    """Appends each layer's keys and values and attends over all of them.

    Storage is allocated at the first forward, once for `max_length` tokens. `length` counts the tokens of finished
    forwards; `advance` is called by whoever drives the model after each forward. Keys and values of cross-attention
    belong to the picture, not to tokens: the last ones made are kept until the cache is emptied.
    """

    def __init__(self, num_layers: int, max_length: int) -> None:
        super().__init__()
        self.num_layers, self.max_length, self.length = num_layers, max_length, 0
        self._keys: list[Tensor | None] = [None] * num_layers
        self._values: list[Tensor | None] = [None] * num_layers
        self._cross: CrossMemory = [None] * num_layers

    @non_conflict
    def attention_fn(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_fn: Any, *, old_impl: Any, **kw: Any
    ) -> Tensor:
        """q, k, v [B, N, S, H] -> [B, N, S, H], attending to the T + S keys seen so far."""
        if kw.get("cross_attention"):
            k, v = k.contiguous(), v.contiguous()
            self._cross[int(kw["layer_id"])] = (k, v)
            return old_impl(q, k, v, mask, dropout_fn, **kw)
        layer_id, stop = int(kw["layer_id"]), self.length + k.shape[2]
        if stop > self.max_length:
            raise ValueError(f"the cache holds {self.max_length} tokens, but {stop} are needed")
        if self._keys[layer_id] is None:
            shape = (*k.shape[:2], self.max_length, k.shape[3])
            self._keys[layer_id], self._values[layer_id] = k.new_empty(shape), v.new_empty(shape)
        keys, values = self._keys[layer_id], self._values[layer_id]
        keys[:, :, self.length : stop] = k
        values[:, :, self.length : stop] = v
        return old_impl(q, keys[:, :, :stop], values[:, :, :stop], mask, dropout_fn, **kw)

    @property
    def cross_memory(self) -> CrossMemory | None:
        """What later forwards read instead of the picture; None before there was one."""
        return self._cross if any(self._cross) else None

    def advance(self, tokens: int) -> None:
        """Count `tokens` more as cached, after a forward over them."""
        self.length += tokens

    def truncate(self, length: int) -> None:
        """Forget everything after the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length
        if length == 0:
            self._cross = [None] * self.num_layers


@contextmanager
def kv_cache(model: ZooModel, max_length: int) -> Iterator[KVCacheMixin]:
    """Give `model` a cache for the time of the block; whatever happens inside, it is taken off again."""
    cache = KVCacheMixin(len(model.transformer.layers), max_length)
    model.add_mixin(CACHE_NAME, cache)
    try:
        yield cache
    finally:
        model.del_mixin(CACHE_NAME)
