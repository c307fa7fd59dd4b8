"""A decode step recorded as a CUDA graph: a thousand kernels launched as one.

A recording reads and writes the same memory each time, so tokens, positions and the place in the cache are copied into
buffers of its own, and attention runs over a whole bucket of columns behind a mask. One is made when steps come again
and again with the same cache, rows and bucket; what comes before, and what cannot be recorded, runs as it is.

Legend: B rows, T cached tokens and the new one, C columns of the bucket, V vocabulary.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from mixins.cache_form import CacheForm
from mixins.kv_cache import KVStore
from sat_models.generation.steps.flat import TokenStep

logger = logging.getLogger(__name__)

BUCKET = 256
"""Columns by which what attention reads grows: 1.6 % too many on average at 8000 tokens, 10 % at 1300."""

RECORD_AFTER = 8
"""Steps of one kind in a row, the last of which is recorded. That runs it twice more, waits for the device and
empties the allocator's cache; short answers, and batches whose rows come and go, would not earn that back."""

Record = Callable[[Callable[[], None], torch.device], Callable[[], None]]

unrecordable: WeakSet[nn.Module] = WeakSet()
"""Models whose step could not be recorded: tried once, and not anew in each answer."""


def record_on_gpu(action: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Record what `action` launches on a GPU; the result launches it again.

    It is run once before, on the stream that records, so that what a first run sets up (kernels, workspaces) is there;
    so twice must do no more than once.
    """
    graph, stream = torch.cuda.CUDAGraph(), _recording_stream(device)
    # Entering the stream that is current anyway brings it back if the recording fails, where torch's block does not.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            action()
        torch.cuda.current_stream().wait_stream(stream)
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                action()
        except BaseException:
            _recover(stream)
            raise
    return graph.replay


def _recover(stream: torch.cuda.Stream) -> None:
    """After a recording that failed, torch draws no random numbers until another one has ended well."""
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream, capture_error_mode="thread_local"):
        torch.zeros(1, device=stream.device)


@functools.cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: cuBLAS keeps a workspace for each stream that it was ever called on."""
    return torch.cuda.Stream(device)


class GraphedStep:
    """Called like the `TokenStep` it records.

    Args:
        step: what to record.
        record: how; another one serves tests.
    """

    def __init__(self, step: TokenStep, record: Record = record_on_gpu) -> None:
        self._step, self._record = step, record
        self._key: tuple[Any, ...] | None = None
        self._times = 0  # that the key came in a row
        self._recording: _Recording | None = None

    def __call__(
        self, ids: Tensor, position_ids: Tensor, store: KVStore, may_look: Tensor | None, *, max_position: int
    ) -> Tensor:
        """As `TokenStep.__call__`. The logits are overwritten by the next call."""
        if store.form is not CacheForm.MODEL:  # a recording writes keys and values as they are
            return self._step(ids, position_ids, store, may_look, max_position=max_position)
        columns = min(-(-(store.length + 1) // BUCKET) * BUCKET, store.max_length)
        memory = tuple(part.data_ptr() for part in (*store.keys, *store.values))
        key = (len(ids), columns, memory, store.max_length, max_position // BUCKET)
        if key != self._key:
            self._key, self._times, self._recording = key, 0, None
        self._times += 1
        if self._recording is None and self._times >= RECORD_AFTER and self._step.model not in unrecordable:
            self._recording = self._try_to_record(ids, position_ids, store, columns, max_position)
        if self._recording is None:
            return self._step(ids, position_ids, store, may_look, max_position=max_position)
        return self._recording.replay(ids, position_ids, store.length, may_look)

    def _try_to_record(self, *given: Any) -> _Recording | None:
        try:
            return _Recording(self._step, self._record, *given)
        except RuntimeError as error:  # a kernel that cannot be recorded, or too little memory
            unrecordable.add(self._step.model)
            logger.warning("decoding runs without CUDA graphs, and slower: %s", str(error).splitlines()[0])
            return None


class _Recording:
    """One recorded step with its buffers."""

    def __init__(
        self, step: TokenStep, record: Record, ids: Tensor, position_ids: Tensor, store: KVStore, columns: int,
        max_position: int,
    ) -> None:  # fmt: skip
        self._ids, self._positions = ids.clone(), position_ids.clone()
        self._place = torch.full((1,), store.length, device=ids.device)
        self._mask = torch.zeros(len(ids), 1, 1, columns, dtype=torch.bool, device=ids.device)
        self._seen = -1  # columns of the mask that are set, from the first on; -1: others
        highest = (max_position // BUCKET + 1) * BUCKET
        self._table = step.reserve(highest)  # kept: it is read by each replay, also when the model has a longer one

        def write(layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            parts = []
            for part, new in ((store.keys[layer], k), (store.values[layer], v)):
                rows = part[: len(ids)]
                rows.index_copy_(2, self._place, new)
                parts.append(rows.narrow(2, 0, columns))
            return parts[0], parts[1]

        def run() -> None:
            self._mask.index_fill_(3, self._place, True)
            self._logits = step.run(self._ids, self._positions, write, self._mask, max_position=highest)

        self._replay = record(run, ids.device)

    def replay(self, ids: Tensor, position_ids: Tensor, length: int, may_look: Tensor | None) -> Tensor:
        self._ids.copy_(ids)
        self._positions.copy_(position_ids)
        self._place.fill_(length)
        if may_look is not None:
            self._mask[..., : length + 1] = may_look
            self._mask[..., length + 1 :] = False  # the store may have been set back
        elif self._seen != length:  # the first time, behind a mask of the caller's, or the store was set back
            self._mask.fill_(False)
            self._mask[..., :length] = True
        self._seen = length + 1 if may_look is None else -1
        self._replay()
        return self._logits
