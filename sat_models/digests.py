"""SHA-256 of values and of the contents of files.

Contents are hashed, not names and times: a file that was replaced in place is another file, whatever its size and time
say; one that was copied or touched is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sat_models.errors import InputError


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_files(files: Iterable[Path]) -> str:
    """SHA-256 over the contents of files, in their order; one that comes again is read once.

    Raises:
        InputError: one cannot be read.
    """
    files = list(files)
    digests = digests_of_files(files)
    return digest_of([digests[file] for file in files])


def digests_of_files(files: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of the content of each file. Raises InputError as `digest_of_files`."""
    each = dict.fromkeys(files)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing leaves the interpreter to others
        return dict(zip(each, pool.map(_digest_of_file, each), strict=True))


def _digest_of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror or error}). Check the path.") from error
