"""The beginnings of prompts, kept from one answer to the next: the same picture and history are not computed again.

Legend: T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mixins.kv_cache import KVStore
from sat_models.processing.inputs import VLMInputs

Images = tuple[tuple[Tensor, ...], ...]
"""Pixels on the CPU, of each kind that a model takes."""


@dataclass(frozen=True, eq=False)
class _Prompt:
    """All that keys and values depend on.

    Attributes:
        tokens: [T, 3] long on the CPU: id, position, image_embed_mask of each.
        images: their pixels.
    """

    tokens: Tensor
    images: Images

    @classmethod
    def of(cls, inputs: VLMInputs) -> _Prompt:
        tokens = torch.stack((inputs.input_ids[0], inputs.position_ids[0], inputs.image_embed_mask[0]), dim=1).cpu()
        return cls(tokens, tuple(map(_pixels, (inputs.vision_image, inputs.cross_image))))

    def followed_by(self, generated: Sequence[int]) -> _Prompt:
        """With the tokens of an answer behind it."""
        made = torch.zeros(len(generated), 3, dtype=torch.long)
        made[:, 0] = torch.tensor(generated, dtype=torch.long)
        made[:, 1] = int(self.tokens[-1, 1]) + torch.arange(1, len(made) + 1)
        return _Prompt(torch.cat((self.tokens, made)), self.images)

    def common_with(self, prompt: _Prompt, most: int) -> int:
        """How many of the first `most` tokens of `prompt` are as here; 0 if the images are others, or the rest of it
        holds any."""
        longest = min(len(self.tokens), most)
        differs = (self.tokens[:longest] != prompt.tokens[:longest]).any(dim=1).nonzero()
        count = int(differs[0]) if len(differs) else longest
        if not count or prompt.tokens[count:, 2].any() or not all(map(_same, self.images, prompt.images)):
            return 0
        return count

    def covers(self, prompt: _Prompt) -> bool:
        """`prompt` is a beginning of this, so that it says nothing new."""
        return self.common_with(prompt, len(prompt.tokens)) == len(prompt.tokens)


@dataclass(frozen=True, eq=False)
class _Kept:
    """A prompt with its answer, and keys and values of all its tokens."""

    prompt: _Prompt
    store: KVStore

    @property
    def bytes(self) -> int:
        pixels = sum(image.nbytes for images in self.prompt.images for image in images)
        return self.store.nbytes + self.prompt.tokens.nbytes + pixels


@dataclass(frozen=True, eq=False)
class Prefix:
    """A prompt, looked up: described and held against what is kept once, whoever asks later.

    Attributes:
        prompt: its description.
        kept: the answer that begins like it; None without.
        shared: how many of its tokens are computed there.
    """

    prompt: _Prompt
    kept: _Kept | None = None
    shared: int = 0


class PrefixCache:
    """Keys and values of the last answers. A prompt that begins as one of them goes on from there.

    Answers are what they would be without. Processes that share a model make the same calls in the same order, so
    every one keeps the same.

    A cache of one answer is handed on: the next answer goes on in its memory. Of several each answer takes a copy, so
    that many may begin alike at the same time; the one that was not used for longest goes first.

    Args:
        capacity: how many answers; 0 keeps none.
        max_bytes: most memory for all of them together, pixels included; None: no bound but `capacity`.
    """

    def __init__(self, capacity: int, *, max_bytes: int | None = None) -> None:
        self.capacity, self.max_bytes = capacity, max_bytes
        self._kept: list[_Kept] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def bytes(self) -> int:
        """Memory of what is kept."""
        return sum(kept.bytes for kept in self._kept)

    def clear(self) -> None:
        """Forget all, and free the memory."""
        self._kept = []

    def find(self, inputs: VLMInputs) -> Prefix | None:
        """A prompt with the kept answer that begins like it; None for a prompt of a kind that is never kept."""
        causal = inputs.attention_mask is None and inputs.position_ids.dim() == 2  # a GLM reads its context both ways
        return self._find(_Prompt.of(inputs)) if self.capacity > 0 and causal else None

    def start(self, found: Prefix | None, room: int) -> tuple[KVStore, int] | None:
        """A store with the first tokens of a prompt, and their number, always less than all; None: nothing is kept.

        Args:
            found: by `find`.
            room: most tokens that the store shall hold.
        """
        if found is None:
            return None
        if found.kept is not None and found.kept not in self._kept:  # it was handed on to another answer meanwhile
            found = self._find(found.prompt)
        if found.kept is None:
            return None
        kept, shared = found.kept, found.shared
        self._kept.remove(kept)
        if self.capacity > 1:
            self._kept.append(kept)
            return kept.store.extract(0, 0, shared, max_length=room), shared
        kept.store.truncate(shared)
        if kept.store.max_length < room:
            kept.store.resize(1, room)
        return kept.store, shared

    def fits(self, size: int) -> bool:
        """A store of so many bytes would be kept."""
        return self.max_bytes is None or size <= self.max_bytes

    def keep(self, found: Prefix, generated: Sequence[int], store: KVStore) -> None:
        """Keep a prompt with the beginning of its answer.

        Args:
            found: by `find`, for this prompt.
            generated: tokens of the answer, at least as many as the store holds behind the prompt.
            store: of one row; it belongs to this cache afterwards.
        """
        length = len(found.prompt.tokens)
        if store.length < length:
            return
        prompt = found.prompt.followed_by(generated[: store.length - length])
        for kept in self._kept:
            if kept.prompt.covers(prompt):
                self._kept.remove(kept)
                self._kept.append(kept)
                return
        if self.capacity > 1 and store.max_length > store.length:  # nobody will go on in it
            store = store.extract(0, 0, store.length, max_length=store.length)
        new = _Kept(prompt, store)
        most = math.inf if self.max_bytes is None else self.max_bytes
        if new.bytes > most:
            return
        self._kept = [kept for kept in self._kept if not prompt.covers(kept.prompt)]
        self._kept.append(new)
        while len(self._kept) > self.capacity or self.bytes > most:
            self._kept.pop(0)

    def _find(self, prompt: _Prompt) -> Prefix:
        """Of those kept, the one with the longest common beginning."""
        common = [kept.prompt.common_with(prompt, len(prompt.tokens) - 1) for kept in self._kept]
        best = max(common, default=0)
        return Prefix(prompt, self._kept[common.index(best)], best) if best else Prefix(prompt)


def _pixels(images: Tensor | Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    if images is None:
        return ()
    return tuple(image.cpu() for image in ((images,) if isinstance(images, Tensor) else images))


def _same(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return len(left) == len(right) and all(a is b or torch.equal(a, b) for a, b in zip(left, right, strict=True))
