"""The tasks that a run may have, by the task of its model."""

from __future__ import annotations

from sat_models.errors import ConfigError
from sat_models.training.dialogue import DialogueTask
from sat_models.training.drawing.task import DrawingTask
from sat_models.training.settings import FinetuneSettings
from sat_models.training.task import Task, completed
from sat_models.zoo import load_config

_TASKS: tuple[type[Task], ...] = (DialogueTask, DrawingTask)


def kind_of(settings: FinetuneSettings) -> type[Task]:
    """The task of the model that is trained.

    Raises:
        ConfigError: a model for a task that is not trained here.
        ZooError: its config cannot be read.
    """
    config = load_config(settings.from_pretrained)
    if config.RUNS_IN == "diffusers":
        raise ConfigError(
            f"{settings.from_pretrained} holds a {config.model_class}, which runs in diffusers and is not fine-tuned "
            "here"
        )
    for task in _TASKS:
        if config.TASK == task.KIND:
            return task
    raise ConfigError(
        f"{settings.from_pretrained} holds a {config.model_class}, a model for {config.TASK}; fine-tuning takes models "
        f"for {' and '.join(task.KIND for task in _TASKS)}"
    )


def task_of(settings: FinetuneSettings) -> Task:
    """The task of a run, its data read and checked.

    Raises:
        ConfigError: settings of another task, or of none.
        ZooError: data that cannot be used.
    """
    kind = kind_of(settings)
    return kind(completed(settings, kind, load_config(settings.from_pretrained)))
