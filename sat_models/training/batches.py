"""Samples -> training batches.

A batch is padded on the right to its longest sample; the mask stays causal (None), so no real token sees padding.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from sat_models.processing.layout import IGNORE, VLMInputs, collate
from sat_models.training.data import Sample, VLMDataset
from sat_models.training.sampler import LengthGroupedSampler

_AHEAD = 4
"""Batches that are loaded while one is used."""


@dataclass(frozen=True)
class Batch:
    """One rank's samples of one step.

    Attributes:
        inputs: on the CPU, pixels in fp32. `vision_image` is None in a batch of text alone.
        step: counted from 0 over all epochs.
        indices: into the dataset, one per row.
        sources: "file:line", one per row.
    """

    inputs: VLMInputs
    step: int
    indices: tuple[int, ...]
    sources: tuple[str, ...]


def batches(
    dataset: VLMDataset,
    *,
    batch_size: int,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    start_step: int = 0,
    group_by_length: bool = True,
    workers: int = 0,
) -> Iterator[Batch]:
    """Training batches without end. Batch k depends on (seed, k) alone: start at k to resume.

    Args:
        dataset: the same on all ranks.
        batch_size: samples per rank and step.
        seed: of the order.
        rank, world: data-parallel rank and their number; ranks that share one model pass the same rank.
        start_step: the first step.
        group_by_length: put samples of like length together; less padding, the same samples per epoch.
        workers: threads that load ahead; 0 loads when asked. The batches are the same.

    Raises:
        ConfigError: numbers out of range.
        InputError: a bad sample, where the dataset's policy is "error".
    """
    sampler = LengthGroupedSampler(
        dataset.lengths, batch_size=batch_size, seed=seed, rank=rank, world=world, start_step=start_step,
        group=group_by_length,
    )  # fmt: skip
    plan = ((step, sampler.batch(step)) for step in itertools.count(start_step))
    for step, samples in _load(dataset, plan, workers):
        yield _join(dataset, step, samples)


def evaluation_batches(
    dataset: VLMDataset,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Every sample once, in order, and equally many batches on each rank.

    Where the samples do not fill the last batches, and where a bad one is replaced, the row's labels are all -100. Sum
    losses and count targets over all ranks before dividing: a batch may have no target at all.

    Args:
        limit: most batches per rank; None takes all.
    """
    size = batch_size * world
    steps = -(-len(dataset) // size)
    steps = steps if limit is None else min(steps, limit)
    wanted = [[step * size + row * world + rank for row in range(batch_size)] for step in range(steps)]
    plan = ((step, [index % len(dataset) for index in indices]) for step, indices in enumerate(wanted))
    for step, samples in _load(dataset, plan, workers):
        asked = wanted[step]
        yield _join(dataset, step, [s if s.index == i else _muted(s) for s, i in zip(samples, asked, strict=True)])


def _load(
    dataset: VLMDataset, plan: Iterator[tuple[int, list[int]]], workers: int
) -> Iterator[tuple[int, list[Sample]]]:
    """The samples of each planned step, in order."""
    if workers < 1:
        yield from ((step, [dataset.take(index) for index in indices]) for step, indices in plan)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="samples")
    waiting: deque = deque()
    try:
        for step, indices in plan:
            waiting.append((step, [pool.submit(dataset.take, index) for index in indices]))
            if len(waiting) > _AHEAD:
                ready, futures = waiting.popleft()
                yield ready, [future.result() for future in futures]
        for ready, futures in waiting:
            yield ready, [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)


def _join(dataset: VLMDataset, step: int, samples: list[Sample]) -> Batch:
    """One batch. Padding is EOS, an id that every vocabulary has; nothing looks at it."""
    inputs = collate([sample.inputs for sample in samples], dataset.processor.tokenizer.eos_id)
    return Batch(inputs, step, tuple(s.index for s in samples), tuple(s.source for s in samples))


def _muted(sample: Sample) -> Sample:
    """The same without targets."""
    labels = torch.full_like(sample.inputs.labels, IGNORE)
    return dataclasses.replace(sample, inputs=dataclasses.replace(sample.inputs, labels=labels))
