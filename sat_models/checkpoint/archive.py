"""Released weights come as a `.zip` with the SAT folder inside: unpack it once, beside itself, and nowhere else."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from sat_models import runtime
from sat_models.errors import CheckpointError

logger = logging.getLogger(__name__)

_SPARE_BYTES = 64 * 2**20  # left free on the disk


def unpack_beside(archive: Path) -> Path:
    """The folder `archive` without `.zip`, unpacked if it is not there yet.

    In a run of several processes, the first of each machine unpacks and the others wait. The folder appears under its
    name when it is complete.

    Raises:
        CheckpointError: a damaged archive, member names that point out of it, or no room.
    """
    target = archive.with_suffix("")
    error = None
    if runtime.local_rank() == 0 and not target.is_dir():
        try:
            _unpack(archive, target)
        except CheckpointError as failure:
            error = str(failure)
    errors = runtime.gather_errors(error)
    if errors:
        raise CheckpointError(errors[0])
    return target


def _unpack(archive: Path, target: Path) -> None:
    logger.info("unpacking %s to %s, once", archive, target)
    staging = archive.with_name(f".{target.name}.unpacking-{os.getpid()}")
    try:
        with zipfile.ZipFile(archive) as opened:
            _check_members(archive, opened)
            opened.extractall(staging)
        _inner_folder(staging).rename(target)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{archive} is damaged or no usable archive ({error}). Download it again.") from error
    except OSError as error:
        if target.is_dir():  # another process was faster
            return
        raise CheckpointError(
            f"cannot unpack {archive} beside itself: {error}. Unpack it by hand and name its folder."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_members(archive: Path, opened: zipfile.ZipFile) -> None:
    for member in opened.infolist():
        name = PurePosixPath(member.filename.replace("\\", "/"))
        kind = stat.S_IFMT(member.external_attr >> 16)
        outside = name.is_absolute() or ".." in name.parts or ":" in member.filename
        if outside or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise CheckpointError(
                f"{archive} was refused: its member '{member.filename}' points out of the archive or is no plain file. "
                "Get the weights from a source you trust."
            )
    needed = sum(member.file_size for member in opened.infolist())
    free = shutil.disk_usage(archive.parent).free
    if needed + _SPARE_BYTES > free:
        raise CheckpointError(
            f"{archive} unpacks to {needed / 2**30:.1f} GiB, but {archive.parent} has {free / 2**30:.1f} GiB free. "
            "Make room or move the archive."
        )


def _inner_folder(staging: Path) -> Path:
    """The one folder in the archive that holds everything, or the archive's root."""
    entries = [entry for entry in staging.iterdir() if entry.name != "__MACOSX"]
    return entries[0] if len(entries) == 1 and entries[0].is_dir() and not entries[0].name.isdigit() else staging
