"""Step folders that appear whole or not at all, written by all ranks at once."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from sat_models import runtime
from sat_models.checkpoint.layout import LATEST_FILE, replaced_name
from sat_models.errors import CheckpointError, ZooError
from sat_models.files import sync_folder, whole_file, write_text

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TORCH_WRITER = "inline_container.cc"
"""Stands in what torch.save raises, instead of an OSError, when it cannot write to a path."""


def everywhere(
    action: Callable[[], T], folder: Path, *, only: bool = True, failed: str = "the checkpoint was not saved"
) -> T | None:
    """Run `action` where `only` holds, wait for all ranks, and raise on all if it failed on one. All ranks call it.

    Args:
        folder: what is being written, for the message.
        failed: how the message begins.

    Returns:
        What `action` returned; None where it did not run.

    Raises:
        CheckpointError: whatever exception it was; a cause other than the disk is logged with its traceback.
    """
    result, failure, message = None, None, None
    if only:
        try:
            result = action()
        except Exception as error:
            failure, message = error, _describe(error, folder)
    messages = runtime.gather_errors(message)
    try:
        if messages:
            raise CheckpointError(f"{failed}; {messages[0]}") from failure
    finally:
        del failure  # its traceback holds this frame: a circle, which would keep a half-written file open
    return result


def _describe(failure: Exception, folder: Path) -> str:
    cause: BaseException | None = failure
    while cause is not None and not isinstance(cause, OSError):  # torch.save may hide it behind a RuntimeError
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, OSError):
        where = cause.filename or f"in {folder}"
        return f"cannot write {where}: {cause.strerror or cause}. Free space or choose another folder."
    if isinstance(failure, ZooError):
        return str(failure)
    if _TORCH_WRITER in str(failure) and folder.is_dir():
        free = shutil.disk_usage(folder).free
        return f"cannot write in {folder}, where {free:,} bytes are free. Free space or choose another folder."
    logger.error("writing %s failed", folder, exc_info=failure)
    return f"writing {folder} failed: {type(failure).__name__}: {failure}"


def start_staging(staging: Path) -> None:
    """Make an empty staging folder, with its parents."""
    shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
    staging.mkdir(parents=True)


def publish(staging: Path, final: Path) -> None:
    """Give a staging folder, whose files are on the disk already, its name. A former `final` is moved aside."""
    for folder, _, _ in os.walk(staging):
        sync_folder(Path(folder))
    replaced = final.with_name(replaced_name(final.name))
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    staging.rename(final)
    sync_folder(final.parent)


def point_latest(final: Path) -> None:
    """Make a published step folder the one that `latest` names; only now its former content goes."""
    write_text(final.with_name(LATEST_FILE), final.name)
    shutil.rmtree(final.with_name(replaced_name(final.name)), ignore_errors=True)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    """A safetensors file, whole, with the rights of any new file (by itself safetensors makes it its owner's)."""
    from safetensors.torch import save_file

    with whole_file(path) as draft:
        draft.touch()
        rights = stat.S_IMODE(draft.stat().st_mode)
        save_file(dict(tensors), draft, metadata=dict(header))
        draft.chmod(rights)
