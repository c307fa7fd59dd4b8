"""What a converter has in its hands: weights that fit the model of their config, and room to write them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.checkpoint.adapter import Adapter
from sat_models.checkpoint.layout import SATCheckpoint
from sat_models.checkpoint.merged import LORA_CONFIG_KEY, open_weights
from sat_models.checkpoint.reshard import StoredWeights, split_rules, stored_kind
from sat_models.config import LLaMAConfig
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.build import build_model, make_config

_SPARE_BYTES = 64 * 2**20  # left free on the disk
TOKENIZER = "tokenizer.model"
EMBEDDING = "transformer.word_embeddings.weight"


@dataclass(frozen=True)
class Opened:
    """What is to be written: weights by SAT's names, the model they belong to, the content of their config."""

    weights: StoredWeights
    model: nn.Module
    config: Mapping[str, Any]
    tokenizer_file: Path | None

    def kind(self, name: str, dtype: torch.dtype | None) -> torch.dtype:
        """Dtype on disk, where `dtype` is asked for."""
        stored = self.weights.kind(name)
        return stored_kind(name, torch.empty(0, dtype=stored, device="meta"), dtype)

    def bytes_of(self, dtype: torch.dtype | None, names: Iterable[str]) -> dict[str, int]:
        """Bytes of each whole weight on disk."""
        shapes = self.model.state_dict()
        return {name: shapes[name].numel() * self.kind(name, dtype).itemsize for name in names}


def of_model(model: nn.Module, config: LLaMAConfig, tokenizer_file: Path | None) -> Opened:
    """The weights of a model that this process holds as a whole. Raises ConfigError if it holds a part."""
    if mpu.get_model_parallel_world_size() > 1:
        raise ConfigError("this process holds a part of the model only; convert what save_checkpoint writes")
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    return Opened(StoredWeights([weights], split_rules(model)), model, config.to_dict(), tokenizer_file)


def open_whole(checkpoint: SATCheckpoint, adapter: Adapter | None = None) -> Opened:
    """The weights of a checkpoint, held against the model that its config describes."""
    runtime.init_model_parallel(1)
    model = build_model(make_config(checkpoint.config))
    weights = open_weights(checkpoint, model, adapter=adapter)
    config = {key: value for key, value in checkpoint.config.items() if key != LORA_CONFIG_KEY}
    if adapter is not None and adapter.extra.get("version"):
        config["text_processor_version"] = adapter.extra["version"]
    places = (place / TOKENIZER for place in (checkpoint.step_folder, checkpoint.folder))
    return Opened(weights, model, config, next((file for file in places if file.is_file()), None))


def check_room(folder: Path, needed: int) -> None:
    """Raise CheckpointError if the disk of `folder`, which need not exist yet, has no room for `needed` bytes."""
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if needed + _SPARE_BYTES > free:
        raise CheckpointError(
            f"{folder} needs {needed / 2**30:.2f} GiB, but {place} has {free / 2**30:.2f} GiB free. "
            "Make room or choose another folder."
        )
