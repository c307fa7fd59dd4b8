"""The root of all configs, whatever the model is for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from sat_models.config.base import build, fields_to_dict, take_known
from sat_models.errors import ConfigError

TASKS = ("dialogue", "drawing", "film")
"""The tasks of models: to talk (about images), or makes images or films from text."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Root of all typed configs.

    Attributes:
        model_class: as `model_config.json` names it.
        extra: keys of the file that are not ours; they are written back.
    """

    model_class: str
    extra: dict[str, Any] = field(default_factory=dict)

    TASK: ClassVar[str] = "dialogue"
    """One of `TASKS`."""
    PROMPT_LANGUAGES: ClassVar[tuple[str, ...]] = ()
    """The languages of the prompts that it was trained with, "zh" or "en"; none: any."""
    SAT_PREFIX: ClassVar[str] = ""
    """What SAT's files put before the names of the weights."""
    RUNS_IN: ClassVar[str] = "SwissArmyTransformer"
    """Whose layers the network has."""
    SAT_FORM: ClassVar[bool] = True
    """Whether its weights are ever kept as SAT's files."""
    TOKENIZER_FILES: ClassVar[tuple[str, ...]] = ()
    """What a tokenizer of one file may be called beside the weights."""

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """From the content of a `model_config.json`."""
        known, extra = take_known(cls, data)
        extra.pop("model_parallel_size", None)  # a property of a run, not of the model
        return build(cls, {**known, "extra": extra})

    def to_dict(self) -> dict[str, Any]:
        """As the content of a `model_config.json`."""
        return {"model_parallel_size": 1, **fields_to_dict(self)}

    def check_model_parallel(self, size: int) -> None:
        """Raise ConfigError, naming the value, if the model cannot be split over `size` processes."""
        for what, value in self._split_sizes().items():
            if value % size:
                raise ConfigError(
                    f"model-parallel size {size} does not divide {what} = {value}. Start as many processes as divide "
                    f"all of: {', '.join(f'{k} {v}' for k, v in self._split_sizes().items())}."
                )

    def _split_sizes(self) -> dict[str, int]:
        """The numbers that are divided among the processes, by name."""
        return {}
