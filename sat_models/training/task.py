"""What a run is about: whose data, which model, what loss. All else of a run is the same for every task: what trains,
the memory estimate, the engine, the loop, checkpoints, resuming, merging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from mixins.base import ZooModel
from sat_models.config import ModelConfig
from sat_models.errors import ConfigError
from sat_models.training.activations import Probe
from sat_models.training.losses import Objective
from sat_models.training.records import Record
from sat_models.training.samples import Evaluation, TrainingData
from sat_models.training.settings import FinetuneSettings, setting_fields


class Task(Protocol):
    """Made of settings: reads and checks the data, and no weight. `open` makes it ready for the loop.

    Attributes:
        KIND: the task of the models that it trains, as `ModelConfig.TASK` names it.
        TRAINABLE: what trains where nobody says.
        settings: of the run.
        config: of the model.
        records: training data as they were read, which say whether a run is the same.
        objective: the loss.
        train: samples; may be complete only when the task is open.
        evaluator: asks the model while it trains; None: nothing does. Likewise.
        extra: what adapters keep besides.
    """

    KIND: ClassVar[str]
    TRAINABLE: ClassVar[str]
    settings: FinetuneSettings
    config: ModelConfig
    records: Sequence[Record]
    objective: Objective
    train: TrainingData
    evaluator: Evaluation | None
    extra: Mapping[str, Any]

    def __init__(self, settings: FinetuneSettings) -> None: ...

    def facts(self) -> dict[str, Any]:
        """What a run and the checkpoint it goes on from must have in common, by names of `resuming.REASONS`."""

    def summary(self, samples: int) -> str:
        """What is trained on, for people, with so many samples a step."""

    def probe(self) -> Probe:
        """The largest pass, for the memory estimate."""

    def prepare(self, model: ZooModel) -> None:
        """Give a model what it needs for training alone, before it is said what trains."""

    def open(self, device: torch.device, dtype: torch.dtype) -> ZooModel:
        """The model with its weights; data and evaluation are ready then. All ranks call it."""

    def write_config(self, folder: Path) -> None:
        """Put what a step folder needs to be a checkpoint into the folder of the run."""

    @classmethod
    def try_it(cls, settings: FinetuneSettings, merged: str) -> list[tuple[str, str, list[str]]]:
        """The commands that follow a run: what each is for, its script and its arguments."""


def completed(settings: FinetuneSettings, task: type[Task], model: ModelConfig) -> FinetuneSettings:
    """Settings of which the task leaves nothing open.

    Raises:
        ConfigError: a setting of another task.
    """
    for name, given in setting_fields().items():
        owner = given.metadata.get("task")
        if owner not in (None, task.KIND) and getattr(settings, name) != given.default:
            raise ConfigError(
                f"--{name} is for models for {owner}, but {settings.from_pretrained} holds a {model.model_class}, for "
                f"{task.KIND}: leave it out"
            )
    return settings.with_trainable(settings.trainable or task.TRAINABLE)
