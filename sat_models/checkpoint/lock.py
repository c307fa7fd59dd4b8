"""One run at a time in a folder, or at a file.

The lock is the kernel's (`flock` on an open file), so it goes with its process, however that ends: nothing is left
behind by `kill -9`. The file itself stays, and says who holds the lock, or held it last.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from pathlib import Path
from typing import IO

from sat_models.errors import CheckpointError, ConfigError

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Lock:
    """Holds a place until `release`, or until the process ends.

    Args:
        path: the lock's own file; its folder is made where it is not there.
        place: what is held, for the message.
        what: who else may be at work there, for the message: "another fine-tuning run".

    Raises:
        ConfigError: another process holds it.
        CheckpointError: the folder cannot be written.
    """

    def __init__(self, path: Path, place: Path, what: str) -> None:
        self._file: IO[str] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror or error}. Choose another folder.") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with file:
                raise ConfigError(f"{place} is in use by {what}{_holder(file)}. {_REMEDY}") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise CheckpointError(f"cannot lock {path}: {error.strerror or error}.") from error
            logger.warning("%s knows no locks (%s): take care that one run alone writes there", place, error.strerror)
        self._file = file
        self._sign()

    def _sign(self) -> None:
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n")
            self._file.flush()
        except OSError as error:  # a full disk: the lock holds all the same
            logger.warning("the lock of %s could not be signed: %s", self._file.name, error.strerror or error)

    def release(self) -> None:
        """Let others in."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what could not be flushed above
                self._file.close()
            self._file = None


class FolderLock(Lock):
    """The lock of a folder, which is made where it is not there; `what` and errors as of `Lock`."""

    def __init__(self, folder: Path, what: str) -> None:
        super().__init__(folder / LOCK_FILE, folder, what)


class FileLock(Lock):
    """The lock of a file that grows or is replaced, in a file of its own beside it; `what` and errors as of `Lock`."""

    def __init__(self, file: Path, what: str) -> None:
        super().__init__(file.with_name(f".{file.name}{LOCK_FILE}"), file, what)


_REMEDY = "Wait for it to end, end it, or choose another place."


def _holder(file: IO[str]) -> str:
    file.seek(0)
    said = file.read(200).strip()
    return f" ({said})" if said else ""
