"""Opening a checkpoint: find it, read its config, build its model, open its weights, quantise them on the way.

All who read weights come through here, in this order; they differ in how far they go: `open_source` reads no weight,
`Source.open` maps them, `Source.load` fills a model.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mixins.base import ZooModel
from mixins.sat_compat import mpu
from sat_models.checkpoint.adapter import Adapter, adapter_files, load_prefix
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.io import load_weights
from sat_models.checkpoint.layout import SATCheckpoint
from sat_models.checkpoint.merged import LORA_CONFIG_KEY, open_weights
from sat_models.checkpoint.painter_files import PainterFiles
from sat_models.checkpoint.peft import PEFT_WEIGHTS
from sat_models.checkpoint.quantise import Quantiser
from sat_models.checkpoint.reshard import StoredWeights, split_rules, stored_kind
from sat_models.config import LatentModelConfig, ModelConfig
from sat_models.errors import ConfigError
from sat_models.models.build import build_model, make_config
from sat_models.models.common.quantisation import Quantisation
from sat_models.models.common.quantised import bitsandbytes

EMBEDDING = "transformer.word_embeddings.weight"


@dataclass(frozen=True)
class Opened:
    """Weights by SAT's names, still to be read, and the model on meta that they belong to.

    Attributes:
        config: content of a `model_config.json` that says what they are once they are read.
        tokenizer_file: the one that belongs to them; None where there is none.
        others: of a painter, the parts beside its transformer.
    """

    weights: StoredWeights
    model: ZooModel
    config: Mapping[str, Any]
    tokenizer_file: Path | None
    others: PainterFiles | None = None

    @property
    def main_dtype(self) -> torch.dtype:
        """The stored one, by the words' or, without words, the first weight."""
        return self.weights.kind(main_weight(self.weights.names))

    def kind(self, name: str, dtype: torch.dtype | None) -> torch.dtype:
        """Dtype on disk, where `dtype` is asked for."""
        stored = self.weights.kind(name)
        return stored_kind(name, torch.empty(0, dtype=stored, device="meta"), dtype)

    def bytes_of(self, dtype: torch.dtype | None, names: Iterable[str]) -> dict[str, int]:
        """Bytes of each whole weight on disk."""
        shapes = self.model.state_dict()
        return {name: shapes[name].numel() * self.kind(name, dtype).itemsize for name in names}


@dataclass(frozen=True)
class Source:
    """A model before its weights are read.

    Attributes:
        config: with the prompt style of the adapter, where it names one.
        adapter: LoRA that is merged, and weights that it holds in full.
        alpha: of LoRA matrices that lie beside the weights; None takes their config's, else 1 as in the originals.
        quantisation: what is still to be done to the linears; None where nothing is, or it has been done before.
    """

    checkpoint: SATCheckpoint
    config: ModelConfig
    adapter: Adapter | None = None
    alpha: float | None = None
    quantisation: Quantisation | None = None

    def files(self) -> list[Path]:
        """All that is read."""
        own = adapter_files(self.adapter.file) if self.adapter and self.adapter.file else []
        return [self.checkpoint.config_file, *self.checkpoint.files, *own]

    def open(self, dtype: torch.dtype | None = None) -> Opened:
        """The weights, mapped and held against their model, LoRA merged as they are read; none of it is in memory yet.

        Args:
            dtype: of the model.

        Raises:
            CheckpointError: names or shapes that do not fit, or LoRA onto quantised weights.
        """
        model = build_model(self.config, dtype=dtype)
        weights = open_weights(self.checkpoint, model, adapter=self.adapter, alpha=self.alpha)
        config = {key: value for key, value in self.checkpoint.config.items() if key != LORA_CONFIG_KEY}
        if (version := getattr(self.config, "text_processor_version", None)) is not None:
            config["text_processor_version"] = version
        others = None
        if isinstance(self.config, LatentModelConfig):
            others = PainterFiles.beside(self.checkpoint.step_folder, self.config)
        return Opened(weights, model, config, self._tokenizer_file(), others)

    def load(self, device: torch.device | str, dtype: torch.dtype) -> tuple[ZooModel, ModelConfig]:
        """A model with this rank's part of the weights, and the config that says what became of them.

        Raises:
            CheckpointError: as `open`.
            ConfigError: a linear that cannot be quantised.
        """
        opened, config = self.open(dtype), self.config
        model = opened.model
        quantiser = Quantiser(model, self.quantisation) if self.quantisation else None
        load_weights(model, self.checkpoint, device=device, source=opened.weights, quantiser=quantiser)
        if self.adapter is not None and self.adapter.prefix_length:
            load_prefix(model, self.adapter)
        if self.quantisation is not None:
            config = model.config = self.quantisation.noted_in(config)
        return model, config

    def _tokenizer_file(self) -> Path | None:
        """The one of the run that trained the adapter goes before the base model's."""
        file = self.adapter.file if self.adapter else None
        run = file.parent.parent if file and file.name not in PEFT_WEIGHTS else None
        places = [*([run] if run else []), self.checkpoint.step_folder, self.checkpoint.folder]
        files = (place / name for place in places for name in self.config.TOKENIZER_FILES)
        return next((file for file in files if file.is_file()), None)


def main_weight(names: Collection[str]) -> str:
    """The weight whose dtype is said to be that of a checkpoint."""
    return EMBEDDING if EMBEDDING in names else next(iter(names))


def open_source(
    where: SATCheckpoint | str | os.PathLike[str],
    *,
    adapter: Adapter | None = None,
    alpha: float | None = None,
    quantisation: Quantisation | None = None,
    size: int = 1,
) -> Source:
    """Find weights and read what they are.

    Args:
        where: whatever `find_checkpoint` takes, or what it gave.
        adapter: of weights that were trained on these.
        alpha: see `Source`.
        quantisation: what is asked for; weights that are stored so already are taken as they are.
        size: model-parallel parts that are wanted.

    Raises:
        CheckpointError: absent or incomplete files.
        ConfigError: a bad config, a size that does not divide the model, weights quantised in another way.
        MissingPackageError: quantised weights without bitsandbytes.
    """
    checkpoint = where if isinstance(where, SATCheckpoint) else find_checkpoint(where)
    config = make_config(checkpoint.config)
    adapter = adapter.on(config) if adapter is not None else None
    if adapter is not None and adapter.extra.get("version"):
        config = dataclasses.replace(config, text_processor_version=adapter.extra["version"])
    config.check_model_parallel(size)
    if quantisation and config.RUNS_IN == "diffusers":
        raise ConfigError(
            f"{config.model_class} runs in diffusers, and its linears stay as they are: leave quant out (quant_text is "
            "for the text encoder)"
        )
    stored = Quantisation.of(config)
    if stored or quantisation:
        bitsandbytes()
    if stored and quantisation and (stored.bits != quantisation.bits or not {*quantisation.skip} <= {*stored.skip}):
        raise ConfigError(
            f"{checkpoint.step_folder} holds linears of {stored.bits} bits, all but {', '.join(stored.skip)}; load it "
            "without quant and quant_skip, or name the weights in full precision"
        )
    return Source(checkpoint, config, adapter, alpha, None if stored else quantisation)


def of_model(model: nn.Module, config: ModelConfig, tokenizer_file: Path | None) -> Opened:
    """The weights of a model that this process holds as a whole. Raises ConfigError if it holds a part."""
    if mpu.get_model_parallel_world_size() > 1:
        raise ConfigError("this process holds a part of the model only; convert what save_checkpoint writes")
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    return Opened(StoredWeights([weights], split_rules(model)), model, config.to_dict(), tokenizer_file)
