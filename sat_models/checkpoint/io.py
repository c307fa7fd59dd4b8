"""Weights between SAT's files and a model: read straight into place, written so that a crash leaves nothing half."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.checkpoint.fit import stored_weights
from sat_models.checkpoint.layout import CONFIG_FILE, SATCheckpoint, rank_file
from sat_models.checkpoint.pickles import read_weights
from sat_models.checkpoint.reshard import StoredWeights, stored_kind
from sat_models.checkpoint.staging import (
    everywhere,
    point_latest,
    publish,
    start_staging,
)
from sat_models.config import ModelConfig
from sat_models.files import draft_of, write_json
from sat_models.models.build import computable_buffers, compute_buffer, make_config
from sat_models.processing.tokenizer_files import copy_tokenizer

if TYPE_CHECKING:
    from sat_models.checkpoint.quantise import Quantiser

__all__ = ["SATCheckpoint", "load_weights", "read_weights", "save_checkpoint", "write_parts"]


def load_weights(
    model: nn.Module,
    checkpoint: SATCheckpoint,
    *,
    device: torch.device | str,
    dtype: torch.dtype | None = None,
    source: StoredWeights | None = None,
    quantiser: Quantiser | None = None,
) -> None:
    """Fill `model` with this rank's slices of the stored weights, one tensor at a time.

    Meta parameters get memory on `device` as they are read; nothing is held twice. The number of stored parts and the
    model-parallel size of this run need not agree.

    Args:
        model: as `build_model` gives it.
        dtype: of floating-point weights; None keeps the model's.
        source: where to read instead (`checkpoint.merged.open_weights`); None takes the stored weights as they are.
        quantiser: made for `model`; the linears that it means are exchanged for their quantised form one by one.

    Raises:
        CheckpointError: unreadable files, or names and shapes that do not fit the model, as lists.
        ConfigError: a weight that cannot be quantised.
    """
    rank, size = mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
    targets = model.state_dict(keep_vars=True)
    computed = {key: (module, name) for key, module, name in computable_buffers(model)}
    source = source or stored_weights(checkpoint, model)
    made: dict[int, Tensor] = {}
    for key in [key for key in source.names if key in targets]:
        target = targets[key]
        part = functools.partial(source.part, key, size=size, dtype=dtype or target.dtype, device=device)
        if quantiser is not None and key in quantiser:
            quantiser.place(model, key, part, rank, size)
        else:
            if id(target) not in made:
                made[id(target)] = part(rank).read()
            _assign(model, key, made[id(target)])
        source.done(key)
    for module, name in computed.values():
        buffer = module._buffers[name]
        if buffer.is_meta:
            module._buffers[name] = compute_buffer(module, name, device=device, dtype=dtype or buffer.dtype)
    left = [key for key, tensor in [*model.named_parameters(), *model.named_buffers()] if tensor.is_meta]
    assert not left, f"still on meta: {left}"


def _assign(model: nn.Module, key: str, value: Tensor) -> None:
    """Put `value` in the place of a parameter or buffer, keeping the attributes (`model_parallel`) of a parameter."""
    path, _, name = key.rpartition(".")
    module = model.get_submodule(path)
    if name in module._buffers:
        module._buffers[name] = value
        return
    before = module._parameters[name]
    after = nn.Parameter(value, requires_grad=before.requires_grad)
    after.__dict__.update(before.__dict__)
    module._parameters[name] = after


def save_checkpoint(
    model: nn.Module,
    folder: str | os.PathLike[str],
    config: ModelConfig,
    *,
    step: int | str,
    dtype: torch.dtype | None = None,
    tokenizer_file: Path | None = None,
) -> Path:
    """Write `model` in SAT's layout; call it on every rank.

    Files are written to a staging folder, flushed to the disk and renamed; `latest` changes last. Whenever the process
    is killed, `latest` names a whole checkpoint (the former one, or the new one).

    Args:
        folder: SAT folder; made if absent, other steps in it stay.
        step: number of the step, or "release".
        dtype: of floating-point weights on disk; None keeps the model's.
        tokenizer_file: copied beside the config, so that the folder can be loaded as it is.

    Returns:
        The step folder.

    Raises:
        CheckpointError: on every rank if any rank cannot write.
    """
    folder = Path(folder).expanduser()
    final = folder / str(step)
    staging, first = draft_of(final), runtime.rank() == 0
    content = {**config.to_dict(), "model_parallel_size": mpu.get_model_parallel_world_size()}
    everywhere(lambda: start_staging(staging), folder, only=first)
    everywhere(lambda: write_rank_weights(model, staging, dtype), folder)
    everywhere(lambda: _publish(staging, final, content, tokenizer_file), folder, only=first)
    return final


def write_parts(
    parts: Iterable[Mapping[str, Tensor]],
    folder: str | os.PathLike[str],
    config: Mapping[str, object],
    *,
    step: int | str,
    tokenizer_file: Path | None = None,
) -> Path:
    """Write a checkpoint from one process, as safely as `save_checkpoint`.

    Args:
        parts: weights of model-parallel rank 0, 1, …; each is written before the next one is asked for.
        config: content of `model_config.json`; its `model_parallel_size` is the caller's to set.

    Returns:
        The step folder.

    Raises:
        CheckpointError: it cannot be written.
    """
    folder = Path(folder).expanduser()
    final = folder / str(step)
    staging, prefix = draft_of(final), make_config(dict(config)).SAT_PREFIX

    def write() -> None:
        start_staging(staging)
        for rank, weights in enumerate(parts):
            _write_file(weights, staging / rank_file(rank), prefix)
            del weights  # two parts are never in memory at once
        _publish(staging, final, config, tokenizer_file)

    try:
        everywhere(write, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return final


def write_model_config(
    folder: Path, config: ModelConfig, *, model_parallel_size: int | None = None, tokenizer_file: Path | None = None
) -> None:
    """Write `model_config.json`, and the tokenizer beside it if it is not there yet; one rank calls it.

    Args:
        model_parallel_size: number of weight files in a step; None for that of this run.

    Raises:
        OSError: the folder cannot be written.
    """
    size = model_parallel_size or mpu.get_model_parallel_world_size()
    _write_beside(folder, {**config.to_dict(), "model_parallel_size": size}, tokenizer_file)


def _write_beside(folder: Path, config: Mapping[str, object], tokenizer_file: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, config)
    if tokenizer_file is not None:
        copy_tokenizer(tokenizer_file, folder)


def write_rank_weights(model: nn.Module, staging: Path, dtype: torch.dtype | None = None) -> None:
    """Write this rank's part of `model` into a step folder that is being made; every rank may call it.

    One data-parallel replica of each part writes, the others return. No other rank is waited for.

    Args:
        dtype: of floating-point weights on disk; None keeps the model's.

    Raises:
        OSError: it cannot be written.
    """
    if mpu.get_data_parallel_rank() != 0:
        return
    weights, prefix = {}, getattr(model, "config_class", ModelConfig).SAT_PREFIX
    for key, value in model.state_dict().items():
        value = value.detach().to("cpu", stored_kind(key, value, dtype))
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        weights[key] = value if whole else value.clone()  # torch.save writes the whole storage behind a view
    _write_file(weights, staging / rank_file(mpu.get_model_parallel_rank()), prefix)


def _write_file(weights: Mapping[str, Tensor], path: Path, prefix: str) -> None:
    with path.open("wb") as file:
        torch.save({"module": {f"{prefix}{name}": value for name, value in weights.items()}}, file)
        file.flush()
        os.fsync(file.fileno())


def _publish(staging: Path, final: Path, config: Mapping[str, object], tokenizer_file: Path | None) -> None:
    publish(staging, final)
    _write_beside(final.parent, config, tokenizer_file)
    point_latest(final)
