"""Annotations with a JSON object per line: POPE's, and RefCOCO's as Qwen-VL and InternVL publish them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from sat_models.errors import InputError
from sat_models.evaluation.entry import Entry, entry_of
from sat_models.evaluation.samples import PixelBox, Sample, is_file, read_text
from sat_models.text import DoubleKeyError, unique_keys

_MARGIN = 1.0  # boxes of COCO end up to so much behind the last pixel


def holds_lines(path: Path, key: str) -> bool:
    """Whether the first line of a file is an object with a key: such files come under the name `.json`, too."""
    try:
        first = json.loads(read_text(path).lstrip().partition("\n")[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and key in first


def read_pope(path: Path, images: Path) -> Iterator[Sample]:
    """POPE: a JSON object per line with `question_id`, `image`, `text` and `label`."""
    for _, entry in _entries(path):
        label = entry.text("label").strip().lower()
        if label not in ("yes", "no"):
            raise InputError(f"{entry.place}: 'label' is {label!a:.40}; it must be yes or no.")
        words = {"question": entry.text("text")}
        yield Sample(entry.name("question_id"), images / entry.name("image"), words, (label,), kind="pope")


def read_expressions(path: Path, images: Path) -> Iterator[Sample]:
    """Referring expressions: a JSON object per line with `image`, `sent`, `bbox`, `width` and `height`.

    The box is x1, y1, x2, y2 in pixels: the published scripts take its IoU with the answer's corners. The id is the
    number of the line. An image is looked for under the path of its line, and under its bare name.
    """
    for number, entry in _entries(path):
        said, file = entry.text("sent"), images / entry.name("image")
        place = file if is_file(file) else images / file.name
        yield Sample(str(number), place, {"expression": said}, (said,), (_corners(entry),))


def _corners(entry: Entry) -> PixelBox:
    """The box of a line, which must lie in its image: one of corner and size is told where it does not fit."""
    values = entry.items("bbox")
    corners = tuple(Entry({"bbox": value}, entry.place).number("bbox") for value in values)
    width, height = entry.number("width"), entry.number("height")
    if len(corners) == 4:
        left, top, right, bottom = corners
        if left < right <= width + _MARGIN and top < bottom <= height + _MARGIN and min(left, top) >= -_MARGIN:
            return left, top, right, bottom
    raise InputError(
        f"{entry.place}: 'bbox' is {values!a:.80}; it must be x1, y1, x2, y2 inside of {width:g} x {height:g} px."
    )


def _entries(path: Path) -> Iterator[tuple[int, Entry]]:
    """The objects of a file, with the numbers of their lines. Raises InputError for a line that holds none."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        place = f"line {number} of '{path}'"
        try:
            value = json.loads(line, object_pairs_hook=unique_keys)
        except DoubleKeyError as error:
            raise InputError(f"{place}: {error}. Keep one of them.") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place} is not JSON ({error}).") from error
        yield number, entry_of(value, place)
