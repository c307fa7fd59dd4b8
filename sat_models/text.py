"""Text that cannot be written: half of a surrogate pair, which JSON can spell and UTF-8 cannot.

Scraped JSON holds such halves (an emoji cut in two). They are refused as input, and never keep an error message or a
record from being written. And tables in Markdown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any


class DoubleKeyError(ValueError):
    """A key that an object of JSON has twice: which of its values was meant, nobody can tell."""


def unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The `object_pairs_hook` of what people write: an object, each of whose keys comes once.

    Raises:
        DoubleKeyError: one comes twice; the message is part of a sentence about the text.
    """
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise DoubleKeyError(f"an object has the key {twice!a:.60} twice")
    return found


def is_utf8(text: str) -> bool:
    """True if a text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    r"""A text in which halves of surrogate pairs are spelled out (`\ud83d`), so that it can be written anywhere."""
    return text.encode("utf-8", "backslashreplace").decode()


def json_line(record: Any) -> str:
    r"""A record as one line of JSONL, its end included; characters as they are, or as `\u….` if UTF-8 lacks one."""
    line = json.dumps(record, ensure_ascii=False)
    return (line if is_utf8(line) else json.dumps(record)) + "\n"


def markdown_table(lines: Iterable[Sequence[str]]) -> str:
    """The lines of a table, each of its cells: the head, the borders ("---" in each cell), and the rows."""
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
