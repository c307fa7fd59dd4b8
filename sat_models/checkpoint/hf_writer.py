"""Hugging Face folders as a result: config, safetensors shards with their index, tokenizer, a card to fill in."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm

from sat_models.checkpoint.hf_beside import plan_beside
from sat_models.checkpoint.huggingface import DIFFUSERS_STEM, INDEX_FILE, SCHEDULER_FILE, form_of_class
from sat_models.checkpoint.layout import HF_CONFIG_FILE, PIPELINE_FILE, SATCheckpoint
from sat_models.checkpoint.left_out import write_left_out
from sat_models.checkpoint.output import check_output, check_room, new_folder
from sat_models.checkpoint.source import EMBEDDING, Opened, main_weight, of_model, open_source
from sat_models.checkpoint.staging import write_tensors
from sat_models.config import LanguageConfig
from sat_models.errors import CheckpointError, ConfigError
from sat_models.files import write_json, write_text
from sat_models.models.common.quantisation import QUANTISATION_KEY
from sat_models.processing.tokenizer_files import copy_tokenizer

logger = logging.getLogger(__name__)

SHARD_BYTES = 5 * 10**9
_OF_TOKENS = (EMBEDDING, "mixins.lm.lm_head.weight")
"""Weights with a row for each token."""


def save_hf(
    source: nn.Module | SATCheckpoint | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    config: LanguageConfig | None = None,
    layout: str | None = None,
    dtype: torch.dtype | None = None,
    tokenizer_file: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
) -> Path:
    """Write a Hugging Face folder: config, safetensors shards with their index, tokenizer, a model card to fill in.

    One shard is held in memory at a time. The folder appears under its name when it is complete.

    Args:
        source: a model with all its weights in this process, a checkpoint, or its path.
        folder: must not exist, or be empty.
        config: of `source`, if that is a model.
        layout: as `convert`.
        dtype: of floating-point weights; None keeps them.
        tokenizer_file: None takes the one beside a checkpoint.
        shard_bytes: most bytes in one shard, unless a single weight has more.
        overwrite: a folder that was written so may give way, as a whole.

    Raises:
        CheckpointError, ConfigError: as `convert`.
    """
    folder, read = Path(folder).expanduser().resolve(), []
    if isinstance(source, nn.Module):
        if config is None:
            raise ConfigError("to save a model, save_hf needs its config")
        opened = of_model(source, config, tokenizer_file)
    else:
        found = open_source(source)
        opened, read = found.open(), found.files()
    check_output(folder, overwrite=overwrite, read=read)
    plan = HFPlan(
        opened, dtype, name=folder.name, layout=layout, tokenizer_file=tokenizer_file, shard_bytes=shard_bytes
    )
    check_room(folder, plan.bytes())
    with new_folder(folder, last=plan.last) as staging:
        plan.write(staging)
    return folder


class HFPlan:
    """A Hugging Face folder to be written.

    Args:
        opened: the weights.
        dtype: of floating-point weights; None keeps them.
        name: of the model, for its card.
        layout: as `convert`.
        tokenizer_file: None takes that of `opened`.
        shard_bytes: most bytes in one shard, unless a single weight has more.

    Raises:
        ConfigError: the model has no Hugging Face form, or none of that layout, or its weights are quantised.
    """

    def __init__(
        self,
        opened: Opened,
        dtype: torch.dtype | None,
        *,
        name: str,
        layout: str | None = None,
        tokenizer_file: Path | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        if QUANTISATION_KEY in opened.config:
            raise ConfigError("quantised weights have no Hugging Face form here; convert those in full precision")
        form = form_of_class(opened.config["model_class"], layout)
        self._opened, self._dtype, self._name = opened, dtype, name
        self._tokenizer_file = tokenizer_file or opened.tokenizer_file
        self._beside = plan_beside(form, opened.config, self._tokenizer_file)
        config = self._beside.processor.config.to_dict() if self._beside else opened.config
        self._rows = config.get("vocab_size")
        self._form, self._data = form, {**form.config_to_hf(config)}
        self._kind = str(opened.kind(main_weight(opened.weights.names), dtype)).removeprefix("torch.")
        if form.pipeline is None:
            self._data["torch_dtype"] = self._kind
        self._keys = form.keys_of(opened.config)
        layers = opened.config.get("num_layers", 1)
        names = [hf for sat in opened.weights.names for hf in self._keys.all_hf(sat, layers)]
        self._names = {hf: [place.name for place in self._keys.places(hf)] for hf in names}
        sizes = opened.bytes_of(dtype, opened.weights.names)
        for name in sizes.keys() & {*_OF_TOKENS}:
            sizes[name] = sizes[name] // opened.config["vocab_size"] * self._rows
        shares = {hf: self._keys.share(hf) for hf in self._names}
        parts = {hf: sum(sizes[sat] for sat in own) * shares[hf][0] // shares[hf][1] for hf, own in self._names.items()}
        self._shards = list(_shards(parts, shard_bytes))

    @property
    def last(self) -> str:
        """The file without which it is no checkpoint."""
        return HF_CONFIG_FILE if self._form.pipeline is None else PIPELINE_FILE

    def bytes(self) -> int:
        """Of the weights on disk."""
        others = self._opened.others
        return self._own_bytes() + (others.bytes() if others is not None else 0)

    def _own_bytes(self) -> int:
        return sum(sum(shard.values()) for shard in self._shards)

    def write(self, folder: Path) -> None:
        """Write it into an empty folder.

        Raises:
            OSError, CheckpointError: it cannot be written.
        """
        write_text(folder / "README.md", _card(self._name, self._data, self._opened.config, self._kind))
        if self._form.pipeline is not None:
            folder = self._write_pipeline(folder)
        try:
            index = self._write_shards(folder)
        except SafetensorError as error:
            raise CheckpointError(f"cannot write in {folder}: {error}. Free space or choose another folder.") from error
        names = INDEX_FILE if self._form.pipeline is None else f"{DIFFUSERS_STEM}.safetensors.index.json"
        write_json(folder / names, {"metadata": {"total_size": self._own_bytes()}, "weight_map": index})
        write_json(folder / HF_CONFIG_FILE, self._data)
        if self._form.pipeline is not None:
            write_left_out(folder, self._opened, self._keys)
        if self._beside:
            self._beside.write(folder)
        if file := self._tokenizer_file:
            names = self._opened.model.config.TOKENIZER_FILES
            copy_tokenizer(file, folder, file.name if file.name in names else names[0])

    def _write_pipeline(self, folder: Path) -> Path:
        """All but the network, whose folder is given."""
        inside = folder / self._form.part
        inside.mkdir()
        others = self._opened.others
        entries = others.write_diffusers(folder) if others is not None else {}
        scheduler, name = self._form.pipeline(self._opened.model.config)
        (folder / SCHEDULER_FILE).parent.mkdir()
        write_json(folder / SCHEDULER_FILE, scheduler)
        entries |= {
            "scheduler": ["diffusers", scheduler["_class_name"]],
            self._form.part: ["diffusers", self._form.architecture],
        }
        write_json(folder / PIPELINE_FILE, {"_class_name": name, **entries})
        if absent := [part for part, entry in entries.items() if entry[0] is None]:
            logger.warning(
                "%s: nothing beside the weights, so the folder is without: %s", self._name, ", ".join(absent)
            )
        return inside

    def _write_shards(self, folder: Path) -> dict[str, str]:
        """Gives the file of each weight."""
        index: dict[str, str] = {}
        weights, names = self._opened.weights, self._names
        with tqdm(total=len(names), unit="weight", desc="writing", disable=None) as progress:
            for number, shard in enumerate(self._shards, start=1):
                stem = "model" if self._form.pipeline is None else DIFFUSERS_STEM
                file = folder / f"{stem}-{number:05d}-of-{len(self._shards):05d}.safetensors"
                tensors = {}
                for name in shard:
                    values = [self._value(sat) for sat in names[name]]
                    tensors[name] = self._keys.hf_value(name, *values)
                    for sat in names[name]:
                        weights.done(sat)
                    index[name] = file.name
                    progress.update()
                write_tensors(tensors, file, {"format": "pt"})
                del tensors
        return index

    def _value(self, sat: str) -> Tensor:
        """A weight; the rows of tokens that the model had no room for are copies of the first, which loses to it."""
        value = self._opened.weights.part(sat, dtype=self._dtype).read()
        more = self._rows - len(value) if sat in _OF_TOKENS else 0
        return torch.cat((value, value[:1].expand(more, -1))) if more else value


def _shards(sizes: Mapping[str, int], most: int) -> Iterator[dict[str, int]]:
    """Names with their bytes, in their order, a shard at a time."""
    shard: dict[str, int] = {}
    for name, size in sizes.items():
        if shard and sum(shard.values()) + size > most:
            yield shard
            shard = {}
        shard[name] = size
    yield shard


def _card(name: str, data: Mapping[str, Any], config: Mapping[str, Any], kind: str) -> str:
    draws = "_class_name" in data
    architecture = data["_class_name"] if draws else data["architectures"][0]
    use = 'vlm = load_pretrained("{}")\nprint(vlm.generate("picture.png", "What is in the picture?").text)'
    if draws:
        use = 'painter = load_pretrained("{}")\npainter.draw("A red circle and a blue square").save("image.png")'
    sizes = f", {config['num_layers']} layers, width {config['hidden_size']}" if "num_layers" in config else ""
    image = f"Pictures: {config['eva_args']['image_size'][0]} px; " if "eva_args" in config else ""
    return f"""---
tags: [{"text-to-image" if draws else "vision-language"}]
---
# {name}

TODO: what this model is for, what it was trained on, and the licence of its weights (that of the weights it was made
from applies).

- Architecture: {architecture}{sizes}
- {image}weights: {kind}

Load it with the zoo of SAT models; no remote code is needed:

```python
from sat_models.zoo import load_pretrained

{use.format(name)}
```
"""
