"""An object of an annotation file that knows its place, so that what is missing or of another kind is named with it.

A place is written as `jq` takes it: `'captions.json', .annotations[3]`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat_models.errors import InputError
from sat_models.evaluation.samples import PixelBox, corner_box, read_json
from sat_models.text import is_utf8

_HINT = "docs/evaluation.md shows the formats."


@dataclass(frozen=True)
class Entry:
    """One object.

    Attributes:
        fields: its content.
        place: for messages.
    """

    fields: Mapping[str, Any]
    place: str

    def __contains__(self, key: str) -> bool:
        return key in self.fields

    def value(self, key: str) -> Any:
        """The value under a key, whatever it is.

        Raises:
            InputError: there is no such key.
        """
        if key not in self.fields:
            has = ", ".join(map(repr, list(self.fields)[:8])) or "nothing"
            raise InputError(f"{self.place} is not in the format: '{key}' is missing (it has {has}). {_HINT}")
        return self.fields[key]

    def text(self, key: str, *, empty: bool = False) -> str:
        """A text that can be written as UTF-8; an empty one only where that is allowed."""
        return self._text(self.value(key), key, empty)

    def optional(self, key: str, default: str = "") -> str:
        """A text, or `default` where there is none."""
        return default if self.fields.get(key) is None else self.text(key, empty=True)

    def name(self, key: str) -> str:
        """An id or a file's name, of text or a whole number."""
        value = self.value(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1:
            return str(int(value))
        return self._text(value, key, False)

    def number(self, key: str) -> float:
        """A finite number."""
        return self._number(self.value(key), key)

    def items(self, key: str) -> list[Any]:
        """A list of whatever; it may be empty."""
        value = self.value(key)
        if not isinstance(value, list):
            raise self._unfit(key, value, "a list")
        return value

    def entries(self, key: str) -> list[Entry]:
        """The objects of a list."""
        start = self.place if " ." in self.place else f"{self.place}, "
        return entries_of(self.items(key), f"{start}.{key}")

    def texts(self, key: str, inner: str) -> tuple[str, ...]:
        """The texts of a list, at least one: each bare, or under `inner` of an object."""
        items = self.items(key)
        if not items:
            raise self._unfit(key, items, "a list with at least one item")
        if all(isinstance(item, str) for item in items):
            return tuple(self._text(item, key, True) for item in items)
        return tuple(entry.text(inner, empty=True) for entry in self.entries(key))

    def box(self, *keys: str) -> PixelBox:
        """A box from its corner and size: of four numbers, or of one list of four."""
        values = [self.fields.get(key) for key in keys] if len(keys) > 1 else self.items(keys[0])
        if len(values) != 4:
            raise self._unfit(keys[0], values, "four numbers: x, y, width, height")
        numbers = map(self.number, keys) if len(keys) > 1 else (self._number(value, keys[0]) for value in values)
        box = corner_box(*numbers)
        if not all(map(math.isfinite, box)):
            raise self._unfit(keys[0], values, "a box whose corners are finite")
        return box

    def _text(self, value: Any, key: str, empty: bool) -> str:
        if not isinstance(value, str) or not (value.strip() or empty):
            raise self._unfit(key, value, "text")
        if not is_utf8(value):
            raise self._unfit(key, value, "text that UTF-8 can write; it holds half of a surrogate pair")
        return value

    def _number(self, value: Any, key: str) -> float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self._unfit(key, value, "a finite number")
        return number

    def _unfit(self, key: str, value: Any, wanted: str) -> InputError:
        shown = "null" if value is None else f"{value!a:.60}"
        return InputError(f"{self.place} is not in the format: '{key}' is {shown}; it must be {wanted}. {_HINT}")


def read_entry(path: Path) -> Entry:
    """The object that a JSON file holds.

    Raises:
        InputError: the file is missing, no JSON, or holds something else.
    """
    return entry_of(read_json(path), f"'{path}'")


def entries_of(values: Any, place: str) -> list[Entry]:
    """The objects of a list that stands at `place`."""
    if not isinstance(values, list):
        raise InputError(f"{place} is not in the format: it is {type(values).__name__}, but must be a list. {_HINT}")
    return [entry_of(value, f"{place}[{number}]") for number, value in enumerate(values)]


def entry_of(value: Any, place: str) -> Entry:
    """The object that stands at `place`."""
    if not isinstance(value, dict):
        shown = f"{type(value).__name__} {value!a:.40}"
        raise InputError(f"{place} is not in the format: it is {shown}, but must be an object. {_HINT}")
    return Entry(value, place)
