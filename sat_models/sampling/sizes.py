"""A size as people type it; importing this is light."""

from __future__ import annotations

import re

from sat_models.errors import InputError

_SIZE = re.compile(r"(\d{1,6})\s*[x×,* ]\s*(\d{1,6})")


def size_of(text: str, name: str = "size") -> tuple[int, int]:
    """Width and height of a text such as 1024x768. Raises InputError, with the `name` of what holds it."""
    if not (found := _SIZE.fullmatch(text.strip().lower())):
        raise InputError(f"{name} is '{text:.40}'; it must be WIDTHxHEIGHT in pixels, such as 1024x768")
    return int(found[1]), int(found[2])
