"""Weights between SAT's files and a model: read straight into place, written so that a crash leaves nothing half."""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.checkpoint.layout import (
    CONFIG_FILE,
    LATEST_FILE,
    SATCheckpoint,
    find_checkpoint,
    rank_file,
    replaced_name,
)
from sat_models.checkpoint.pickles import read_weights
from sat_models.checkpoint.reshard import SplitRule, read_shard, split_rules
from sat_models.config import LLaMAConfig
from sat_models.errors import CheckpointError
from sat_models.models.build import computable_buffers, compute_buffer

__all__ = ["SATCheckpoint", "find_checkpoint", "load_weights", "read_weights", "save_checkpoint", "write_parts"]

logger = logging.getLogger(__name__)


def load_weights(
    model: nn.Module, checkpoint: SATCheckpoint, *, device: torch.device | str, dtype: torch.dtype | None = None
) -> None:
    """Fill `model` with this rank's slices of the stored weights, one tensor at a time.

    Meta parameters get memory on `device` as they are read; nothing is held twice. The number of stored parts and the
    model-parallel size of this run need not agree.

    Args:
        model: as `build_model` gives it.
        dtype: of floating-point weights; None keeps the model's.

    Raises:
        CheckpointError: unreadable files, or names and shapes that do not fit the model, as lists.
    """
    stored = checkpoint.read()
    rank, size = mpu.get_model_parallel_rank(), mpu.get_model_parallel_world_size()
    rules = split_rules(model)
    targets = model.state_dict(keep_vars=True)
    computed = {key: (module, name) for key, module, name in computable_buffers(model)}
    check_fit(checkpoint, stored, targets, rules, size, optional=set(computed))
    made: dict[int, Tensor] = {}
    for key in [key for key in stored[0] if key in targets]:
        target = targets[key]
        kind = (dtype or target.dtype) if target.is_floating_point() else target.dtype
        if id(target) not in made:
            made[id(target)] = read_shard(
                [part[key] for part in stored], rules[key], rank, size, dtype=kind, device=device
            )
        _assign(model, key, made[id(target)])
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


def check_fit(
    checkpoint: SATCheckpoint,
    stored: Sequence[Mapping[str, Tensor]],
    targets: Mapping[str, Tensor],
    rules: Mapping[str, SplitRule],
    size: int,
    *,
    optional: set[str],
) -> None:
    """Raise CheckpointError with all that is missing, unexpected or of a wrong shape."""
    for rank, part in enumerate(stored[1:], start=1):
        if part.keys() != stored[0].keys():
            raise CheckpointError(
                f"{checkpoint.files[rank].name} holds other names than {checkpoint.files[0].name} in "
                f"{checkpoint.step_folder}: {_shorten(sorted(part.keys() ^ stored[0].keys()))}. "
                "The files do not belong together."
            )
    missing = sorted(targets.keys() - stored[0].keys() - optional)
    unexpected = sorted(stored[0].keys() - targets.keys())
    wrong = []
    for key in targets.keys() & stored[0].keys():
        wanted = rules[key].shard_shape(rules[key].full_shape(targets[key].shape, size), len(stored))
        wrong += [
            f"{checkpoint.stored_name(key)} {list(part[key].shape)} (the config needs {list(wanted)})"
            for part in stored
            if tuple(part[key].shape) != wanted
        ][:1]
    if not (missing or unexpected or wrong):
        return
    lines = [f"the weights in {checkpoint.step_folder} do not fit {checkpoint.config_file}:"]
    lines += [f"  {len(missing)} missing: {_shorten(list(map(checkpoint.stored_name, missing)))}"] if missing else []
    lines += [f"  {len(unexpected)} unexpected: {_shorten(unexpected)}"] if unexpected else []
    lines += [f"  {len(wrong)} of a wrong shape: {_shorten(sorted(wrong))}"] if wrong else []
    raise CheckpointError("\n".join([*lines, f"  {_remedy(checkpoint, unexpected, bool(wrong))}"]))


def _shorten(names: Sequence[str], limit: int = 6) -> str:
    return ", ".join(names[:limit]) + (f", … and {len(names) - limit} more" if len(names) > limit else "")


def _remedy(checkpoint: SATCheckpoint, unexpected: Sequence[str], wrong_shapes: bool) -> str:
    declared = checkpoint.config.get("model_parallel_size")
    if any(".matrix_A." in name or ".original." in name for name in unexpected):
        return "These are LoRA weights that were not merged; merge them with scripts/merge_lora.py first."
    if wrong_shapes and checkpoint.config_file.name == CONFIG_FILE and declared not in (None, len(checkpoint.files)):
        return (
            f"The config says model_parallel_size {declared}, but {len(checkpoint.files)} weight file(s) are there: "
            f"copy the other mp_rank files into {checkpoint.step_folder}."
        )
    name = checkpoint.config.get("model_class")
    return f"Check that {checkpoint.config_file.name} belongs to these weights (model_class {name})."


def save_checkpoint(
    model: nn.Module,
    folder: str | os.PathLike[str],
    config: LLaMAConfig,
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
    staging, final = folder / f".{step}.writing", folder / str(step)
    size = mpu.get_model_parallel_world_size()
    writes = mpu.get_data_parallel_rank() == 0
    _everywhere(lambda: _start_staging(staging), only=runtime.rank() == 0)
    _everywhere(lambda: _write_rank(model, staging, dtype), only=writes)
    _everywhere(
        lambda: _publish(staging, final, {**config.to_dict(), "model_parallel_size": size}, tokenizer_file),
        only=runtime.rank() == 0,
    )
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
    staging, final = folder / f".{step}.writing", folder / str(step)

    def write() -> None:
        _start_staging(staging)
        files = (staging / rank_file(rank) for rank in itertools.count())
        for weights in parts:
            _write_file(weights, next(files))
            del weights  # two parts are never in memory at once
        _publish(staging, final, config, tokenizer_file)

    _everywhere(write, only=True)
    return final


def _everywhere(step: Callable[[], None], *, only: bool) -> None:
    """Run `step` where `only` holds; wait for all ranks, and raise on all if it failed on one."""
    error = None
    if only:
        try:
            step()
        except OSError as failure:
            error = f"cannot write {failure.filename}: {failure.strerror or failure}"
    errors = runtime.gather_errors(error)
    if errors:
        raise CheckpointError(f"the checkpoint was not saved; {errors[0]}. Free space or choose another folder.")


def _start_staging(staging: Path) -> None:
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
    staging.mkdir(parents=True)


def _write_rank(model: nn.Module, staging: Path, dtype: torch.dtype | None) -> None:
    weights = {}
    for key, value in model.state_dict().items():
        kind = dtype if dtype is not None and value.is_floating_point() else value.dtype
        value = value.detach().to("cpu", kind)
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        weights[key] = value if whole else value.clone()  # torch.save writes the whole storage behind a view
    _write_file(weights, staging / rank_file(mpu.get_model_parallel_rank()))


def _write_file(weights: Mapping[str, Tensor], path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"module": dict(weights)}, file)
        file.flush()
        os.fsync(file.fileno())


def _publish(staging: Path, final: Path, config: Mapping[str, object], tokenizer_file: Path | None) -> None:
    _sync_folder(staging)
    replaced = final.with_name(replaced_name(final.name))
    shutil.rmtree(replaced, ignore_errors=True)
    if final.exists():
        final.rename(replaced)
    staging.rename(final)
    folder = final.parent
    _write_text(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    if tokenizer_file is not None and not (folder / tokenizer_file.name).exists():
        shutil.copyfile(tokenizer_file, folder / tokenizer_file.name)
    _sync_folder(folder)
    _write_text(folder / LATEST_FILE, final.name)
    shutil.rmtree(replaced, ignore_errors=True)


def _write_text(path: Path, text: str) -> None:
    """Replace a small file in one step."""
    staging = path.with_name(f".{path.name}.writing")
    with staging.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
