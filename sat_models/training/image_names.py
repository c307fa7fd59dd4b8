"""The names of the pictures of an entry of training data, and which of them stands at which `<image>`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sat_models.training.marks import SLOT
from sat_models.training.records import EntryError

IMAGE_KEYS = ("image", "images", "img")
Slot = str | int | None
"""What stands at an `<image>`: a picture's name, its number in "images", or None for the next of these."""
_LIKE_AN_IMAGE = re.compile(r"(image|img|pic|photo|file_?(name|path))", re.I)
_NUMBERED = re.compile(r"(image|img|picture)[_-]?\d+", re.I)
_FILE = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?)$", re.I)


def part_name(part: dict[str, Any]) -> Slot:
    """Name or URL in a picture part; of a bare {"type": "image"} its "index" in "images", where it has one."""
    value = next((part[key] for key in ("image_url", "image", "url", "path") if part.get(key)), None)
    value = value.get("url") if isinstance(value, dict) else value
    if value is None and isinstance(part.get("index"), int):
        return part["index"]
    if value is not None and not isinstance(value, str):
        raise EntryError("fields", f"picture part {part!a:.60} names its picture by {type(value).__name__}, not text")
    return value


def image_names(entry: dict[str, Any]) -> list[str]:
    """Names of an entry's own pictures."""
    given = [key for key in IMAGE_KEYS if entry.get(key) not in (None, "", [], {}) and entry[key] is not False]
    listed = [_names(entry[key]) for key in given]
    if len({tuple(names) for names in listed}) > 1:
        raise EntryError("fields", f"has both '{given[0]}' and '{given[1]}', which differ; keep the one that is meant")
    more = [key for key, named in entry.items() if _NUMBERED.fullmatch(key) and _names_something(named)]
    if more:
        raise EntryError("fields", f"has '{more[0]}', which is not read; list the pictures under 'images'")
    if listed:
        return listed[0]
    other = [
        key
        for key, value in entry.items()
        if (_LIKE_AN_IMAGE.match(key) and _names_something(value)) or _names_a_file(value)
    ]
    if other:
        raise EntryError("fields", f"has '{other[0]}' but no picture in 'image'; rename it")
    return []


def _names(value: Any) -> list[str]:
    """The names under a picture key."""
    items = value if isinstance(value, list) else [value]
    names = [item.get("path") if isinstance(item, dict) else item for item in items]
    if not all(isinstance(name, str) and name for name in names):
        raise EntryError("fields", f"the picture is {value!a:.60}; it must be a name or a list of names")
    return names


def _names_something(value: Any) -> bool:
    """True if a value may name a picture: text, or a list or object with some in it."""
    if isinstance(value, dict):
        value = list(value.values())
    return bool(value) and (isinstance(value, str) or (isinstance(value, list) and any(map(_names_something, value))))


def _names_a_file(value: Any) -> bool:
    """Whether a value is a picture's file name, or a list of such."""
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and _FILE.search(name) for name in names)


def fill_slots(slots: Sequence[Slot], names: list[str]) -> list[str]:
    """Pictures in the order of their slots; without slots, as they are listed.

    Raises:
        EntryError: another number of pictures than of slots without a name, or numbers that are not in their order.
    """
    if not slots:
        return names
    wanted = [slot for slot in slots if not isinstance(slot, str)]
    if len(wanted) != len(names):
        raise EntryError(
            "slots", f"{len(wanted)} {SLOT} in the questions, but {len(names)} picture(s); give as many (or no {SLOT})"
        )
    if odd := [slot for place, slot in enumerate(wanted) if slot not in (None, place)]:
        raise EntryError("slots", f"the picture of 'index' {odd[0]} is out of order; list the pictures as they come")
    rest = iter(names)
    return [slot if isinstance(slot, str) else next(rest) for slot in slots]
