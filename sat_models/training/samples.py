"""What the loop knows of data, whatever it trains on: samples that become batches of inputs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from mixins.base import ZooModel


class ModelInputs(Protocol):
    """The inputs of a batch.

    Attributes:
        tokens: how many tokens it has, padding included.
        has_images: False if it gives no gradient to what only images reach.
    """

    @property
    def tokens(self) -> int: ...

    @property
    def has_images(self) -> bool: ...

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
        """The same on a device, what the model reads as floats in a dtype."""


@dataclass(frozen=True)
class Sample:
    """One sample as it was taken: `index` is another than asked for where a bad one was replaced.

    Attributes:
        inputs: of this sample.
        source: "file:line".
        counts: False for a row that only fills a batch up, without a part in the loss.
    """

    inputs: Any
    index: int
    source: str
    counts: bool = True


@dataclass(frozen=True)
class Place:
    """Where a batch stands in a run. What is drawn for its rows hangs on this alone, so that a resumed run draws the
    same, and so do the processes that share a model.

    Attributes:
        step: counted from 0 over all epochs; -1 in evaluations.
        rows: the number of each row among those of all ranks; in evaluations, in the data.
    """

    step: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """One rank's samples of one step.

    Attributes:
        inputs: on the CPU, floats in fp32.
        step: counted from 0 over all epochs.
        indices: into the dataset, one per row.
        sources: "file:line", one per row.
    """

    inputs: ModelInputs
    step: int
    indices: tuple[int, ...]
    sources: tuple[str, ...]


class TrainingData(Protocol):
    """Samples by number; the same on all ranks.

    Attributes:
        lengths: roughly the tokens of each; only their order matters.
        kinds: of each; samples of one kind alone share a batch. None: all are alike.
        bad: reasons of samples found bad, by source.
    """

    lengths: Sequence[int]
    kinds: Sequence[Hashable] | None
    bad: Mapping[str, str]

    def __len__(self) -> int: ...

    def take(self, index: int) -> Sample:
        """One sample. Raises InputError for a bad one that cannot be replaced."""

    def collate(self, samples: Sequence[Sample], place: Place) -> ModelInputs:
        """Samples of one kind as a batch."""


class Evaluation(Protocol):
    """What is asked of a model while it trains."""

    def evaluate(
        self, model: ZooModel, *, device: torch.device, dtype: torch.dtype, in_step: bool = False
    ) -> tuple[dict[str, float], list[Any]]:
        """Scores by name, and what was made; the same on all ranks, which all call it.

        Args:
            in_step: every rank must run every forward pass (ZeRO-3).
        """

    def keep(self, made: list[Any], folder: Path, step: int) -> None:
        """Write what was made at a step into the folder of a run. Raises OSError."""
