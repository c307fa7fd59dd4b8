"""The folder that a command writes a checkpoint into: it appears whole or not at all, and never takes another's place.

What is there already stays, unless such a command wrote it (its marker lies there, and nothing that the marker does not
list) and is asked to overwrite it. Then the whole folder gives way, so that no file of the former model is left.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from sat_models.errors import CheckpointError, ConfigError
from sat_models.files import check_path, draft_of, sync_folder, write_json

logger = logging.getLogger(__name__)

MARKER_FILE = "converted.json"
"""Names the files that a command wrote, so that it may overwrite them and nothing else."""

_INSIDE = ".writing"
_SPARE_BYTES = 64 * 2**20  # left free on the disk


def replaced_folder(folder: Path) -> Path:
    """Where a folder is moved while another takes its name."""
    return folder.with_name(f".{folder.name}.replaced")


def check_output(folder: Path, *, overwrite: bool, read: Iterable[Path]) -> None:
    """See, before any work, that `folder` may be written.

    Args:
        overwrite: what such a command wrote may be replaced.
        read: files that the result is made from.

    Raises:
        ConfigError: it holds one of these.
        CheckpointError: it is there and may not be replaced; the message says why.
    """
    check_path(folder)
    if not folder.exists() and replaced_folder(folder).is_dir():
        logger.warning("%s was being replaced when a process was killed; taking the former one", folder)
        replaced_folder(folder).rename(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file; name a folder")
    place = folder.resolve()
    if inside := [file for file in read if file.resolve().is_relative_to(place)]:
        raise ConfigError(f"{inside[0].parent} is what is read; name another folder to write to")
    found = _files_in(folder)
    if not found:
        return
    written = _written(folder)
    if not overwrite:
        remedy = "; or add --overwrite: a command like this one wrote it" if written else ""
        raise CheckpointError(f"{folder} exists already; name a new folder{remedy}")
    if not written:
        raise CheckpointError(
            f"{folder} exists already and was not written by such a command (it has no {MARKER_FILE}), so --overwrite "
            "leaves it alone; name a new folder, or remove it yourself"
        )
    if foreign := sorted(found - written):
        raise CheckpointError(
            f"{folder} also holds {', '.join(foreign[:4])}, which --overwrite would lose and no such command wrote; "
            "move it away, or name a new folder"
        )


def check_room(folder: Path, needed: int) -> None:
    """Raise CheckpointError if the disk of `folder`, which need not exist yet, has no room for `needed` bytes."""
    place = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if needed + _SPARE_BYTES > free:
        raise CheckpointError(
            f"{folder} needs {needed / 2**30:.2f} GiB, but {place} has {free / 2**30:.2f} GiB free. "
            "Make room or choose another folder."
        )


@contextlib.contextmanager
def new_folder(folder: Path, *, last: str) -> Iterator[Path]:
    """Gives an empty folder to write into; at the end of the block it becomes `folder`, with a marker in it.

    A block that fails, or is interrupted, leaves everything as it was. Who writes has asked `check_output` before.

    Args:
        last: name of the file without which the folder is no checkpoint.

    Raises:
        CheckpointError: it cannot be written.
    """
    inside = folder.is_dir() and not _files_in(folder)
    staging = folder / _INSIDE if inside else draft_of(folder)  # an empty folder may be all that one may write in
    try:
        shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
        staging.mkdir(parents=True)
        yield staging
        files = sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file())
        write_json(staging / MARKER_FILE, {"files": [*files, MARKER_FILE]})
        for place, _, _ in os.walk(staging):
            sync_folder(Path(place))
        _fill(staging, folder, last) if inside else _rename(staging, folder)
    except OSError as error:
        where = error.filename or folder
        message = f"cannot write {where}: {error.strerror or error}. Free space or choose another folder."
        raise CheckpointError(message) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _files_in(folder: Path) -> set[str]:
    """Names of all but what a killed process was about to write into it."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return {path.as_posix() for path in found if path.parts[0] != _INSIDE}


def _written(folder: Path) -> set[str]:
    """The files that the marker of a folder lists; none without one."""
    try:
        files = json.loads((folder / MARKER_FILE).read_text(encoding="utf-8"))["files"]
        return {name for name in files if isinstance(name, str)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _fill(staging: Path, folder: Path, last: str) -> None:
    for entry in sorted(staging.iterdir(), key=lambda path: (path.name == last, path.name != MARKER_FILE)):
        target = folder / entry.name
        if target.is_dir():
            shutil.rmtree(target)  # it holds no file
        entry.rename(target)
    sync_folder(folder)


def _rename(staging: Path, folder: Path) -> None:
    replaced = replaced_folder(folder)
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    staging.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)
