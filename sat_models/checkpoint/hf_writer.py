"""Hugging Face folders as a result: config, safetensors shards with their index, tokenizer, a card to fill in."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from tqdm import tqdm

from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.huggingface import INDEX_FILE, family_of_class, open_hf
from sat_models.checkpoint.layout import HF_CONFIG_FILE, SATCheckpoint
from sat_models.checkpoint.reshard import StoredWeights
from sat_models.checkpoint.source import EMBEDDING, TOKENIZER, Opened, check_room, of_model, open_whole
from sat_models.checkpoint.staging import write_tensors
from sat_models.config import LLaMAConfig
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.common.hf_family import KeyTable
from sat_models.models.common.quantisation import QUANTISATION_KEY

logger = logging.getLogger(__name__)

SHARD_BYTES = 5 * 10**9


def save_hf(
    source: nn.Module | SATCheckpoint | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    config: LLaMAConfig | None = None,
    dtype: torch.dtype | None = None,
    tokenizer_file: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a Hugging Face folder: config, safetensors shards with their index, tokenizer, a model card to fill in.

    One shard is held in memory at a time. The folder appears under its name when it is complete.

    Args:
        source: a model with all its weights in this process, a checkpoint, or its path.
        folder: must not exist, or be empty.
        config: of `source`, if that is a model.
        dtype: of floating-point weights; None keeps them.
        tokenizer_file: None takes the one beside a checkpoint.
        shard_bytes: most bytes in one shard, unless a single weight has more.

    Raises:
        CheckpointError, ConfigError: as `convert`.
    """
    if isinstance(source, nn.Module):
        if config is None:
            raise ConfigError("to save a model, save_hf needs its config")
        opened = of_model(source, config, tokenizer_file)
    else:
        opened = open_whole(source if isinstance(source, SATCheckpoint) else find_checkpoint(source))
    return write_hf(opened, folder, dtype=dtype, tokenizer_file=tokenizer_file, shard_bytes=shard_bytes)


def write_hf(
    opened: Opened,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None,
    tokenizer_file: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    check: Callable[[SATCheckpoint], None] | None = None,
) -> Path:
    if QUANTISATION_KEY in opened.config:
        raise ConfigError("quantised weights have no Hugging Face form here; convert those in full precision")
    family = family_of_class(opened.config["model_class"])
    data = family.config_to_hf(opened.config)
    keys, layers = family.keys, opened.config["num_layers"]
    names = {hf: sat for sat in opened.weights.names for hf in keys.all_hf(sat, layers)}
    sizes = opened.bytes_of(dtype, opened.weights.names)
    shards = list(_shards({hf: sizes[sat] // keys.place(hf).parts for hf, sat in names.items()}, shard_bytes))
    total = sum(sum(shard.values()) for shard in shards)
    folder = Path(folder).expanduser().absolute()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; name a new folder")
    check_room(folder, total)
    staging = folder.with_name(f".{folder.name}.writing")
    try:
        shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
        staging.mkdir(parents=True)
        index = _write_shards(opened.weights, names, keys, shards, staging, dtype)
        kind = opened.kind(EMBEDDING, dtype)
        data["torch_dtype"] = str(kind).removeprefix("torch.")
        _write_json(staging / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": index})
        _write_json(staging / HF_CONFIG_FILE, data)
        (staging / "README.md").write_text(_card(folder.name, data, opened.config), encoding="utf-8")
        if file := tokenizer_file or opened.tokenizer_file:
            shutil.copyfile(file, staging / TOKENIZER)
        if check is not None:
            check(open_hf(staging))
        if folder.exists():
            folder.rmdir()
        staging.rename(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} was not written: {error}. Free space or choose another folder.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    logger.info("wrote %s: %d weights in %d shard(s)", folder, len(names), len(shards))
    return folder


def _shards(sizes: Mapping[str, int], most: int) -> Iterator[dict[str, int]]:
    """Names with their bytes, in their order, a shard at a time."""
    shard: dict[str, int] = {}
    for name, size in sizes.items():
        if shard and sum(shard.values()) + size > most:
            yield shard
            shard = {}
        shard[name] = size
    yield shard


def _write_shards(
    weights: StoredWeights,
    names: Mapping[str, str],
    keys: KeyTable,
    shards: Sequence[Mapping[str, int]],
    staging: Path,
    dtype: torch.dtype | None,
) -> dict[str, str]:
    """Write the shards; gives the file of each weight."""
    index: dict[str, str] = {}
    with tqdm(total=len(names), unit="weight", desc="writing", disable=None) as progress:
        for number, shard in enumerate(shards, start=1):
            file = staging / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors = {}
            for name in shard:
                tensors[name] = keys.hf_value(name, weights.part(names[name], dtype=dtype).read())
                weights.done(names[name])
                index[name] = file.name
                progress.update()
            write_tensors(tensors, file, {"format": "pt"})
            del tensors
    return index


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _card(name: str, data: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    return f"""---
tags: [vision-language]
---
# {name}

TODO: what this model is for, what it was trained on, and the licence of its weights (that of the weights it was made
from applies).

- Architecture: {data["architectures"][0]}, {config["num_layers"]} layers, width {config["hidden_size"]}
- Pictures: {config["eva_args"]["image_size"][0]} px; weights: {data["torch_dtype"]}

Load it with the zoo of SAT models; no remote code is needed:

```python
from sat_models.zoo import load_pretrained

vlm = load_pretrained("{name}")
print(vlm.generate("picture.png", "What is in the picture?").text)
```
"""
