"""JSON of people -> its values, each with the line on which it stands; what is wrong is told with that line."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sat_models.files import refuse_packed, utf8_bytes
from sat_models.text import DoubleKeyError, unique_keys
from sat_models.training.records import OnProblem, Problem


def json_entries(path: Path, on_problem: OnProblem) -> Iterator[tuple[str, Any]]:
    """The entries of a JSON list, of a file with one JSON value per line, or of a file with one object.

    Yields:
        ("file:line", parsed entry); broken lines go to `on_problem`. In a list nothing behind a fault can be read.
    """
    if path.suffix.lower() != ".json":
        yield from _lines(path, on_problem)
        return
    try:
        text = utf8_bytes(path).decode()
    except UnicodeDecodeError as error:
        on_problem(Problem(f"{path}:1", "json", f"is not UTF-8 ({error.reason} at byte {error.start})"))
        return
    if text.lstrip().startswith("["):
        yield from _array(text, path, on_problem)
        return
    try:
        yield f"{path}:1", json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _lines(path, on_problem)
        else:
            on_problem(Problem(f"{path}:{error.lineno}", "json", _fault(error)))
    except (ValueError, RecursionError) as error:
        on_problem(Problem(f"{path}:1", "json", _odd(error)))


def _lines(path: Path, on_problem: OnProblem) -> Iterator[tuple[str, Any]]:
    """One JSON value per line, empty lines passed over."""
    with _opened(path, on_problem) as file:
        for number, line in enumerate(file, 1):
            source = f"{path}:{number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if not text:
                    continue
                entry = json.loads(text, object_pairs_hook=unique_keys)
            except json.JSONDecodeError as error:
                on_problem(Problem(source, "json", _fault(error)))
            except UnicodeDecodeError as error:
                on_problem(Problem(source, "json", f"is not UTF-8 ({error.reason} at byte {error.start} of the line)"))
            except (ValueError, RecursionError) as error:
                on_problem(Problem(source, "json", _odd(error)))
            else:
                yield source, entry


def _opened(path: Path, on_problem: OnProblem) -> BinaryIO:
    """A file as it is read line by line: opened, or taken whole where it is of UTF-16 or 32; an empty one for a fault.

    Raises InputError for a packed one.
    """
    with path.open("rb") as file:
        beginning = file.read(4)
    refuse_packed(path, beginning)
    if not beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        return path.open("rb")
    try:
        return io.BytesIO(utf8_bytes(path))
    except UnicodeDecodeError as error:
        on_problem(Problem(f"{path}:1", "json", f"is not {error.encoding} as its mark says ({error.reason})"))
        return io.BytesIO()


def _array(text: str, path: Path, on_problem: OnProblem) -> Iterator[tuple[str, Any]]:
    """The items of a JSON list, each with the line on which it begins."""
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
    at = _skip_space(text, text.index("[") + 1)
    line, counted, number = 1, 0, 0
    try:
        while text[at : at + 1] != "]":
            value, end = decoder.raw_decode(text, at)
            newlines = text.count("\n", counted, at)
            line, counted, number = line + newlines, at, number + 1
            yield f"{path}:{line}" + ("" if newlines or number == 1 else f" (entry {number})"), value
            at = _skip_space(text, end)
            if text[at : at + 1] == ",":
                at = _skip_space(text, at + 1)
                if text[at : at + 1] == "]":
                    raise json.JSONDecodeError("Expecting value", text, at)
            elif text[at : at + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
    except json.JSONDecodeError as error:
        on_problem(Problem(f"{path}:{error.lineno}", "json", f"{_fault(error)}; nothing behind it is read"))
    except (ValueError, RecursionError) as error:
        on_problem(Problem(f"{path}:{line}", "json", f"{_odd(error)}; nothing behind it is read"))


_SPACE = re.compile(r"[ \t\r\n]*")
_TRAILING_COMMA = re.compile(r",\s*[\]}]")
"""Where Python 3.13 and later say that the fault is."""


def _skip_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()


def _odd(error: ValueError | RecursionError) -> str:
    """What is wrong with JSON that Python cannot hold."""
    if isinstance(error, DoubleKeyError):
        return f"cannot be told: {error}"
    return "is nested too deeply" if isinstance(error, RecursionError) else "holds a number of too many digits"


def _fault(error: json.JSONDecodeError) -> str:
    """The fault, in a line."""
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    hint = ""
    if (after[:1] in ("]", "}") and before.endswith(",")) or _TRAILING_COMMA.match(after):
        hint = "; JSON allows no comma before a closing bracket"
    elif after[:1] == "'":
        hint = '; JSON wants double quotes (")'
    elif not after:
        hint = "; it ends too early"
    return f"is not JSON ({error.msg}, column {error.colno}{hint})"
