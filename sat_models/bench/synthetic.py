"""Checkpoints of any size with made-up weights, to measure what loading costs."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_models import runtime
from sat_models.checkpoint.io import write_parts
from sat_models.checkpoint.reshard import split_rules
from sat_models.errors import ConfigError
from sat_models.models.build import build_model, make_config

_TOWER = {
    "num_layers": 8, "hidden_size": 1024, "num_attention_heads": 16, "inner_hidden_size": 4096,
    "image_size": [224, 224], "patch_size": 14,
}  # fmt: skip
_SIZES = {
    "model_class": "CogVLMModel", "hidden_size": 2048, "num_attention_heads": 16, "inner_hidden_size": 5504,
    "vocab_size": 32000, "max_sequence_length": 2048, "image_length": 256, "eva_args": _TOWER,
}  # fmt: skip


def write_synthetic(
    folder: str | os.PathLike[str], *, gigabytes: float, parts: int = 1, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """Write a SAT folder of a CogVLM of half the released width, with as many layers as make up the size.

    Args:
        gigabytes: size of all weights, in 10^9 bytes; it is met to within a layer.
        parts: model-parallel size.

    Returns:
        The step folder.

    Raises:
        ConfigError: too small a size for one layer.
        CheckpointError: it cannot be written.
    """
    runtime.init_model_parallel(1)
    one, two = (_bytes(_config(layers), dtype) for layers in (1, 2))
    layers = 1 + int((gigabytes * 1e9 - one) // (two - one))
    if layers < 1:
        raise ConfigError(f"{gigabytes} GB is too small: one layer and the vision tower take {one / 1e9:.2f} GB")
    config = _config(layers)
    return write_parts(_parts(config, parts, dtype), folder, {**config, "model_parallel_size": parts}, step=1)


def _config(layers: int) -> dict[str, Any]:
    config = make_config({**_SIZES, "num_layers": layers}).to_dict()
    del config["tokenizer_type"]  # or loading would look for the tokenizer of a released model
    return config


def _bytes(config: dict[str, Any], dtype: torch.dtype) -> int:
    return sum(value.nbytes for value in build_model(make_config(config), dtype=dtype).state_dict().values())


def _parts(config: dict[str, Any], count: int, dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    model = build_model(make_config(config), dtype=dtype)
    rules = split_rules(model)
    shapes = {name: rules[name].shard_shape(value.shape, count) for name, value in model.state_dict().items()}
    for rank in range(count):
        yield {name: _noise(f"{rank} {name}", shape, dtype) for name, shape in shapes.items()}


def _noise(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Normal numbers, a million of them over and over: drawing billions would take minutes."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    count = torch.Size(shape).numel()
    block = (torch.randn(min(count, 2**20), generator=generator) * 0.02).to(dtype)
    return block.repeat(-(-count // len(block)))[:count].clone().view(shape)
