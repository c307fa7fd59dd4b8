"""Which samples make which batch: a function of (seed, step) alone, so that a resumed run sees what a straight one saw.

An epoch is a shuffled order of all samples. With grouping, each window of it (at most a quarter, so that batches differ
from epoch to epoch) is sorted by length and cut into batches, which are shuffled in turn: a batch holds samples of like
length and little padding. The end is filled up from the epoch's beginning, so that all ranks make equally many steps of
equally many samples. Where samples are of several kinds, all this happens kind by kind: a batch is of one.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterator, Sequence

from sat_models.errors import ConfigError

WINDOW = 64
"""Most global batches that are sorted together."""


class LengthGroupedSampler:
    """This rank's indices of each step, without end.

    Attributes:
        step: the step that comes next; set it to start elsewhere.
        steps_per_epoch: the same on all ranks.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        group: bool = True,
        kinds: Sequence[Hashable] | None = None,
    ) -> None:
        """Orders the samples of the first epoch.

        Args:
            lengths: one number per sample; only their order matters.
            batch_size: samples per rank and step.
            seed: of the order.
            rank: data-parallel rank; ranks that share one model pass the same.
            world: number of data-parallel ranks.
            start_step: the first step, counted from 0 over all epochs.
            group: put samples of like length together.
            kinds: of each sample; a batch is of one kind. None: all are alike.

        Raises:
            ConfigError: no samples, or numbers out of range.
        """
        if not lengths:
            raise ConfigError("there are no samples to choose from; check the training data")
        if batch_size < 1 or world < 1 or not 0 <= rank < world or start_step < 0:
            raise ConfigError(
                f"batch_size {batch_size}, rank {rank} of {world}, start_step {start_step}: batch_size must be "
                f"at least 1, rank below the number of ranks, start_step at least 0"
            )
        self._lengths, self._group = list(lengths), group
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.step = start_step
        self._members = by_kind(len(self._lengths), kinds)
        self.steps_per_epoch = sum(-(-len(members) // (batch_size * world)) for members in self._members)
        self._epoch: tuple[int, list[list[int]]] = (-1, [])

    def batch(self, step: int) -> list[int]:
        """This rank's indices of a step; `batch_size` of them, always."""
        epoch, at = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._order(epoch)
        return self._epoch[1][at][self.rank :: self.world]

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            self.step += 1
            yield self.batch(self.step - 1)

    def _order(self, epoch: int) -> list[list[int]]:
        """The global batches of an epoch, `batch_size * world` indices each."""
        rng = random.Random(f"order/{self.seed}/{epoch}")
        batches = [batch for members in self._members for batch in self._of_kind(list(members), rng)]
        rng.shuffle(batches)
        if epoch == 0:  # the longest sample first: memory runs out at once or never
            longest = max(range(len(batches)), key=lambda b: max(self._lengths[i] for i in batches[b]))
            batches[0], batches[longest] = batches[longest], batches[0]
        return batches

    def _of_kind(self, order: list[int], rng: random.Random) -> list[list[int]]:
        """The global batches of the samples of one kind."""
        size = self.batch_size * self.world
        rng.shuffle(order)
        steps = -(-len(order) // size)
        total = steps * size
        order = (order * -(-total // len(order)))[:total]
        if self._group:
            width = size * max(1, min(WINDOW, steps // 4))
            for start in range(0, total, width):
                order[start : start + width] = sorted(order[start : start + width], key=self._lengths.__getitem__)
        return [order[start : start + size] for start in range(0, total, size)]


def by_kind(count: int, kinds: Sequence[Hashable] | None) -> list[list[int]]:
    """The numbers of so many samples, those of a kind together, in the order in which the kinds come."""
    if kinds is None:
        return [list(range(count))]
    members: dict[Hashable, list[int]] = {}
    for number, kind in enumerate(kinds):
        members.setdefault(kind, []).append(number)
    return list(members.values())
