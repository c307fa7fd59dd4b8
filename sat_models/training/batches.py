"""Samples -> training batches.

A batch is padded on the right to its longest sample; the mask stays causal (None), so no real token sees padding.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from sat_models.training.sampler import LengthGroupedSampler, by_kind
from sat_models.training.samples import Batch, Place, Sample, TrainingData

_AHEAD = 4
"""Batches that are loaded while one is used."""


def batches(
    dataset: TrainingData,
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
        group=group_by_length, kinds=dataset.kinds,
    )  # fmt: skip
    plan = ((step, sampler.batch(step)) for step in itertools.count(start_step))
    for step, samples in _load(dataset, plan, workers):
        place = Place(step, tuple(row * world + rank for row in range(batch_size)))
        yield _join(dataset, samples, place, step)


def evaluation_batches(
    dataset: TrainingData,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
    workers: int = 0,
) -> Iterator[Batch]:
    """Every sample once, in order (of one kind after the other), and equally many batches on each rank.

    Where the samples do not fill the last batches, and where a bad one is replaced, a row does not count. Sum losses
    and counts over all ranks before dividing: a batch may have nothing that counts at all.

    Args:
        limit: most batches per rank; None takes all.
    """
    size = batch_size * world
    wanted: list[tuple[tuple[int, bool], ...]] = []  # samples by number, and whether each counts or only fills up
    for members in by_kind(len(dataset), dataset.kinds):
        filled = -(-len(members) // size) * size
        rows = [(members[place % len(members)], place < len(members)) for place in range(filled)]
        wanted += [tuple(rows[first + rank : first + size : world]) for first in range(0, filled, size)]
    wanted = wanted[:limit]
    plan = ((step, [index for index, _ in rows]) for step, rows in enumerate(wanted))
    for step, samples in _load(dataset, plan, workers):
        rows = wanted[step]
        asked = [
            dataclasses.replace(sample, counts=counts and sample.index == index)
            for sample, (index, counts) in zip(samples, rows, strict=True)
        ]
        yield _join(dataset, asked, Place(-1, tuple(index for index, _ in rows)), step)


def _load(
    dataset: TrainingData, plan: Iterator[tuple[int, list[int]]], workers: int
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


def _join(dataset: TrainingData, samples: list[Sample], place: Place, step: int) -> Batch:
    inputs = dataset.collate(samples, place)
    return Batch(inputs, step, tuple(s.index for s in samples), tuple(s.source for s in samples))
