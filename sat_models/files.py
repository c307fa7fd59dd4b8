"""Files that appear whole or not at all, and JSONL that an interrupted run goes on with.

What is to be whole is written beside its place, flushed to the disk and renamed into it. JSONL of answers grows line by
line instead: a line that was cut off is told by what it is, and its answer is made again.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from sat_models.errors import InputError, ZooError
from sat_models.text import json_line, printable

logger = logging.getLogger(__name__)


_PACKED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip
"""How packed files begin, and what unpacks them."""
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
"""Marks at the beginning of a text, longest first, and the encoding that they tell."""


def check_path(path: str | os.PathLike[str]) -> None:
    """Raises InputError for a name that is too long to be looked up."""
    try:
        os.lstat(path)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            raise InputError(f"'{printable(os.fspath(path)[:60])}…' is too long for the name of a file.") from error


def check_place(path: Path) -> None:
    """Raises InputError, before any work, where no file of this name can be written."""
    if not path.parent.is_dir():
        raise InputError(f"'{path}' cannot be written: there is no folder '{path.parent}'. Make it first.")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"'{path}' cannot be written: it is a folder, or you may not write there.")


def draft_of(place: Path) -> Path:
    """Where a file or folder is written before it gets its name; worthless once its process is gone."""
    return place.with_name(f".{place.name}.writing")


@contextlib.contextmanager
def whole_file(place: Path) -> Iterator[Path]:
    """Gives the path of a draft, which takes its name at the end of the block; a block that fails leaves nothing."""
    draft = draft_of(place)
    try:
        yield draft
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(place)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(place.parent)


def write_text(place: Path, text: str) -> None:
    """Make or replace a small file. Raises OSError."""
    with whole_file(place) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(place: Path, content: Any) -> None:
    """The same with JSON, for people to read. Raises OSError."""
    write_text(place, json.dumps(content, indent=2) + "\n")


def write_jsonl(place: Path, records: Iterable[Any]) -> None:
    """The same with one record a line. Raises OSError."""
    with whole_file(place) as draft, draft.open("w", encoding="utf-8") as file:
        file.writelines(map(json_line, records))


def copy_file(source: Path, place: Path) -> None:
    """Copy the content of a file. Raises OSError."""
    with whole_file(place) as draft:
        shutil.copyfile(source, draft)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_packed(path: Path, beginning: bytes) -> None:
    """Raises InputError, which names the program that unpacks it, if a file begins as a packed one does."""
    for mark, program in _PACKED.items():
        if beginning.startswith(mark):
            raise InputError(f"'{path}' is packed ({program}) and read as it lies; unpack it and name what comes out.")


def utf8_bytes(path: Path) -> bytes:
    """The bytes of a text file, without its mark; of UTF-16 and 32 with the mark that says so, in UTF-8.

    Raises:
        OSError: it cannot be read.
        InputError: it is packed.
        UnicodeDecodeError: it does not hold what its mark says.
    """
    data = path.read_bytes()
    refuse_packed(path, data)
    for mark, encoding in _MARKS.items():
        if data.startswith(mark):
            return data.decode(encoding).encode()
    return data.removeprefix(codecs.BOM_UTF8)


def numbered_lines(path: Path, *, errors: str = "strict") -> Iterator[tuple[int, str]]:
    """The lines of a text file that hold something, numbered from 1.

    A line ends at a line feed alone: what else Unicode calls a line end may stand inside a JSON string.

    Args:
        errors: as in `bytes.decode`, for bytes that are no UTF-8.

    Raises:
        InputError: a packed file; bytes that are no UTF-8, with their line.
    """
    try:
        text = utf8_bytes(path).decode(errors=errors)
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {number} is not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def kept_records(path: Path, *, whole: Callable[[dict[str, Any]], bool] = lambda record: True) -> list[dict[str, Any]]:
    """The objects of a JSONL file that a run has left; empty where there is no file.

    Args:
        whole: says which of them count; lines that were cut off never do.
    """
    if not path.exists():
        return []
    records = []
    for number, line in numbered_lines(path, errors="replace"):  # a character may be cut in two
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            logger.warning("line %d of %s was cut off; what it held is done again", number, path)
            continue
        if isinstance(record, dict) and whole(record):
            records.append(record)
    return records


@contextlib.contextmanager
def appended_records(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Gives what appends a record to a JSONL file, each at once; to no file for None.

    A line that a killed run has cut off is ended first.

    Raises:
        ZooError: the file cannot be written; the lines before stay.
    """
    if path is None:
        yield lambda record: None
        return
    with writing(path):
        file = path.open("a+b", buffering=0)
    with file:
        with writing(path):
            if file.tell() and not _ends_line(file):
                file.write(b"\n")

        def append(record: dict[str, Any]) -> None:
            line = json_line(record).encode("utf-8")
            with writing(path):
                while line:  # a disk that fills up takes a part
                    line = line[file.write(line) :]

        yield append


@contextlib.contextmanager
def writing(path: Path, kind: type[ZooError] = ZooError) -> Iterator[None]:
    """Inside, `path` is written by a command that goes on where it stopped. Raises `kind` where it cannot be."""
    try:
        yield
    except OSError as error:
        raise kind(
            f"cannot write {path}: {error.strerror or error}. Free space, or choose another place; the same command "
            "goes on where it stopped."
        ) from error


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"
