"""The beginning of a prompt, kept from one answer to the next: a chat's picture and history are not computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mixins.kv_cache import KVStore
from sat_models.processing.inputs import VLMInputs


@dataclass(frozen=True)
class _Kept:
    """Cached tokens.

    Attributes:
        tokens: [T, 3] long on the CPU: id, position, image_embed_mask of each.
        pictures: pixels on the CPU, None where there are none.
        store: keys and values of at least these tokens.
    """

    tokens: Tensor
    pictures: tuple[Tensor | None, Tensor | None]
    store: KVStore

    def shared_with(self, tokens: Tensor, pictures: tuple[Tensor | None, Tensor | None]) -> int:
        """How many tokens of a prompt need not be computed; always less than all of them.

        Pictures must be the same, and the rest of the prompt must hold none.
        """
        longest = min(len(self.tokens), len(tokens) - 1)
        differs = (self.tokens[:longest] != tokens[:longest]).any(dim=1).nonzero()
        count = int(differs[0]) if len(differs) else longest
        if tokens[count:, 2].any() or not all(map(_same, self.pictures, pictures)):
            return 0
        return count


class PrefixCache:
    """The caches of the last `capacity` answers. A prompt that begins as one of them goes on from there.

    Answers are what they would be without. With processes that share a model, every process keeps the same ones.

    Args:
        capacity: how many; 0 keeps none.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._kept: list[_Kept] = []

    def clear(self) -> None:
        """Forget all, and free the memory."""
        self._kept = []

    @contextmanager
    def store_for(
        self, inputs: VLMInputs, room: int, num_layers: int, generated: Sequence[int]
    ) -> Iterator[tuple[KVStore, int]]:
        """A store for a prompt, and how many of its tokens it holds already; kept after the block, unless it fails.

        Args:
            inputs: one prompt.
            room: tokens of prompt and answer.
            num_layers: of the language model.
            generated: the answer's tokens; read after the block.
        """
        if self.capacity == 0 or inputs.attention_mask is not None:
            yield KVStore(num_layers, room), 0
            return
        tokens = torch.stack((inputs.input_ids[0], inputs.position_ids[0], inputs.image_embed_mask[0]), dim=1).cpu()
        pictures = tuple(None if p is None else p.cpu() for p in (inputs.vision_image, inputs.cross_image))
        store, shared = self._take(tokens, pictures) or (KVStore(num_layers, room), 0)
        if store.max_length < room:
            store.resize(1, room)
        try:
            yield store, shared
        except GeneratorExit:  # the reader had enough: what was computed is good
            self._put(store, tokens, pictures, generated)
            raise
        self._put(store, tokens, pictures, generated)

    def _take(self, tokens: Tensor, pictures: tuple[Tensor | None, Tensor | None]) -> tuple[KVStore, int] | None:
        """The store with the longest common beginning, cut to it; it is taken out."""
        shared = [kept.shared_with(tokens, pictures) for kept in self._kept]
        best = max(shared, default=0)
        if best == 0:
            return None
        store = self._kept.pop(shared.index(best)).store
        store.truncate(best)
        return store, best

    def _put(
        self, store: KVStore, tokens: Tensor, pictures: tuple[Tensor | None, Tensor | None], generated: Sequence[int]
    ) -> None:
        if store.length < len(tokens):
            return  # closed before the first token
        made = torch.zeros(store.length - len(tokens), 3, dtype=torch.long)
        made[:, 0] = torch.tensor(generated[: len(made)], dtype=torch.long)
        made[:, 1] = int(tokens[-1, 1]) + torch.arange(1, len(made) + 1)
        self._kept = [*self._kept, _Kept(torch.cat((tokens, made)), pictures, store)][-self.capacity :]


def _same(left: Tensor | None, right: Tensor | None) -> bool:
    return left is right or (left is not None and right is not None and torch.equal(left, right))
