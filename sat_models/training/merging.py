"""From a saved step to a plain model: `SAVE_PATH/merged`."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from pathlib import Path

import torch

from sat_models import runtime
from sat_models.checkpoint.adapter import ADAPTER_FILE, read_adapter
from sat_models.checkpoint.convert import convert
from sat_models.errors import CheckpointError, ZooError
from sat_models.zoo import locate

_OF_THE_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")


def merge_step(step: Path, target: Path, dtype: torch.dtype | None) -> Path:
    """Write a step of a run as weights of one part.

    Args:
        step: folder with an adapter, or with all weights.
        target: SAT folder to write; what an earlier merging wrote there gives way.
        dtype: of the result; None keeps the base model's.

    Returns:
        The step folder in `target`.

    Raises:
        CheckpointError: a damaged step, another base model, or a folder that cannot be written.
    """
    if not (step / ADAPTER_FILE).is_file():
        return convert(step, "sat", target, dtype=dtype, overwrite=True)
    adapter = read_adapter(step)
    return convert(locate(adapter.base_model), "sat", target, adapter=adapter, dtype=dtype, overwrite=True)


def merge_apart(step: Path, target: Path, dtype: torch.dtype | None) -> None:
    """`merge_step` in a process of its own, for a caller that is one of several.

    Raises:
        CheckpointError: it failed; the message is on stderr.
    """
    kept = {name: os.environ.pop(name) for name in _OF_THE_LAUNCHER if name in os.environ}
    try:
        process = multiprocessing.get_context("spawn").Process(target=_merge, args=(step, target, dtype))
        process.start()
    finally:
        os.environ.update(kept)
    process.join()
    if process.exitcode:
        raise CheckpointError(f"{step} is saved, but it could not be merged (see above); scripts/merge_lora.py does it")


def _merge(step: Path, target: Path, dtype: torch.dtype | None) -> None:
    runtime.setup_logging(logging.WARNING)
    try:
        merge_step(step, target, dtype)
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
