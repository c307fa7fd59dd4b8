"""The tables of the web page below an answer: its boxes, and what else the model's family says in a form of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sat_models.processing.boxes import Box
from sat_models.zoo.vlm import Reading


def tables(found: Reading, words: Mapping[str, str]) -> str:
    """Markdown tables; empty where nothing was found.

    Args:
        words: of the page's language; a part is shown under the word of its name (`agent.operation.action`), else
            under that name.
    """
    both = [_boxes(found.boxes, words["table"]), _parts(found.parts, words)]
    return "\n\n".join(table for table in both if table)


def _boxes(boxes: Sequence[Box], title: str) -> str:
    """The boxes in pixels."""
    if not boxes:
        return ""
    rows = [(_cell(box.phrase), *map(str, box.rounded())) for box in boxes]
    return _table((title, "x1", "y1", "x2", "y2"), ("---", *["---:"] * 4), rows)


def _parts(parts: Mapping[str, Any], words: Mapping[str, str]) -> str:
    rows = [(_cell(words.get(name, name)), value) for name, value in _lines(parts)]
    return _table((words["part"], words["value"]), ("---", "---"), rows) if rows else ""


def _lines(parts: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """Name and text of every part that says something; boxes have a table of their own."""
    for key, value in parts.items():
        name = f"{within}{key}"
        if isinstance(value, Mapping):
            yield from _lines(value, f"{name}.")
        elif key != "boxes" and value not in (None, "", []):
            yield name, _text(value)


def _text(value: Any) -> str:
    """A list of texts is numbered, one of numbers is a place in whole pixels."""
    if not isinstance(value, list):
        return _cell(value)
    if all(isinstance(one, int | float) for one in value):
        return ", ".join(str(round(one)) for one in value)
    return "<br>".join(f"{number}. {_cell(one)}" for number, one in enumerate(value, 1))


def _cell(value: Any) -> str:
    """Text as it is, whatever looks like a tag or a border included."""
    return " ".join(str(value).split()).replace("|", " ").replace("<", "&lt;")


def _table(*lines: Any) -> str:
    head, borders, rows = lines
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, borders, *rows))
