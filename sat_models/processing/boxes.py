"""Boxes in a model's text: `[[x0,y0,x1,y1]]` <-> pixels, and the phrase each belongs to.

CogVLM's coordinates are three-digit integers 000-999: x relative to the width, y to the height, times 1000, top-left
and bottom-right corner; several boxes of one phrase are separated by `;` (arXiv 2311.03079, section 4.3). Other
families write otherwise (`box_forms.py`): all forms are read wherever they stand, and a box says which it was in.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sat_models.errors import InputError
from sat_models.processing.box_forms import (
    BOX_FORMS,
    BoxForm,
    Corners,
    groups_in,
    named_before,
    read_box,
    without_groups,
    write_box,
    write_group,
)
from sat_models.processing.phrases import phrase_before

logger = logging.getLogger(__name__)

LARGEST = 999
"""The largest coordinate the format can write."""

_COGVLM = BOX_FORMS["thousand"]


@dataclass(frozen=True)
class Box:
    """One box.

    Attributes:
        phrase: the noun phrase in front of it, "" if there is none.
        pixels: (x1, y1, x2, y2) in pixels of the picture, fractions kept; x1 <= x2, y1 <= y2.
        normalized: the same as integers 0-999, as CogVLM writes them.
        form: how it stood in the text: its brackets, and what a side was divided into.
    """

    phrase: str
    pixels: tuple[float, float, float, float]
    normalized: tuple[int, int, int, int]
    form: str = "[[]]/1000"

    def rounded(self) -> tuple[int, int, int, int]:
        """`pixels` as whole numbers."""
        return tuple(round(value) for value in self.pixels)


def parse_boxes(
    text: str, width: int, height: int, *, use_spacy: bool | None = None, form: BoxForm | None = None
) -> list[Box]:
    """All boxes in `text`, in order; equal boxes and repeated phrases are all kept.

    Spaces are allowed anywhere, and so are `[[...],[...]]`, `[[x0,y0],[x1,y1]]`, `[x0, y0, x1, y1]`,
    `(x0, y0, x1, y1)`, `{<x0><y0><x1><y1>}`, `(x0,y0),(x1,y1)` and fractions. What the model got wrong is treated so:
    corners in the wrong order are swapped, values above 999 become 999 (of other scales: the picture's edge), and a box
    without exactly four values (or one that is not closed) is left out with a debug log, its neighbours kept.

    Args:
        text: a model's answer.
        width, height: of the picture in pixels.
        use_spacy: None uses spaCy's `en_core_web_sm` for phrases where installed; False never.
        form: of the model's family (`Processor.box_form`); it says whether boxes are of the picture padded to a
            square, and what `[0, 0, 1, 1]` means.

    Raises:
        InputError: a size below 1.
    """
    _check_size(width, height)
    boxes: list[Box] = []
    phrase, cursor = "", 0
    for group in groups_in(text):
        named, segment = named_before(text[cursor : group.start])
        found = named if named is not None else phrase_before(segment, use_spacy=use_spacy)
        phrase = phrase if found is None else found  # a box right behind another has the same phrase
        cursor = group.end
        for one in group.boxes:
            if one is None:
                logger.debug("a box of '%s' has not four values; left out", text[group.start : group.end])
            else:
                values, scale = read_box(one, group.style, form)
                boxes.append(_box(phrase, values, scale, width, height, form, f"{group.style}/{scale}"))
    return boxes


def _box(phrase: str, values: Corners, scale: int, width: int, height: int, family: BoxForm | None, form: str) -> Box:
    """A box of numbers as they stand in a text."""
    square = family is not None and family.square
    if scale == 1000 and not square and not (family and family.tags):
        normalized = _ordered([round(value) for value in values])
        return Box(phrase, _to_pixels(normalized, width, height), normalized, form)
    side = max(width, height)
    pixels = []
    for value, size in zip(values, (width, height, width, height), strict=True):
        whole, margin = (side, (side - size) / 2) if square else (size, 0.0)
        pixels.append(max(0.0, min(value / scale * whole - margin, float(size))))
    x0, x1, y0, y1 = *sorted(pixels[::2]), *sorted(pixels[1::2])
    sizes = (width, height, width, height)
    normalized = _ordered([round(value * 1000 / size) for value, size in zip((x0, y0, x1, y1), sizes, strict=True)])
    return Box(phrase, (x0, y0, x1, y1), normalized, form)


def count_boxes(text: str) -> int:
    """Boxes that a text writes, those included that `parse_boxes` leaves out because they have not four values."""
    return sum(len(group.boxes) for group in groups_in(text))


def format_boxes(boxes: Iterable[Box | Sequence[float]], width: int, height: int, form: BoxForm | None = None) -> str:
    """The text of boxes: `[[086,540,400,760]]`, several separated by `;`, "" for none. The inverse of `parse_boxes`.

    Args:
        boxes: `Box`es or pixel corners (x1, y1, x2, y2); corners in the wrong order are swapped, what lies outside
            the picture is clamped to 000-999.
        width, height: of the picture in pixels.
        form: of the model that is told them; None is CogVLM's.

    Raises:
        InputError: a size below 1, or corners that are not four finite numbers.
    """
    _check_size(width, height)
    form = form or _COGVLM
    side, texts = max(width, height), []
    for box in boxes:
        corners = box.pixels if isinstance(box, Box) else _four_numbers(box)
        shares = []
        for value, size in zip(corners, (width, height, width, height), strict=True):
            share = (value + (side - size) / 2) / side if form.square else value / size
            shares.append(max(0.0, min(share, 1.0)))
        (x0, x1), (y0, y1) = sorted(shares[::2]), sorted(shares[1::2])
        texts.append(write_box((x0, y0, x1, y1), form))
    return write_group(texts, form) if texts else ""


def strip_boxes(text: str) -> str:
    """`text` without its boxes, for reading aloud or for metrics."""
    without = without_groups(text)
    return re.sub(r"\s+([.,;:!?])", r"\1", re.sub(r"[ \t]{2,}", " ", without)).strip()


def _ordered(values: Sequence[int]) -> tuple[int, int, int, int]:
    """Clamped to 0-999, corners top-left and bottom-right."""
    x0, y0, x1, y1 = (max(0, min(value, LARGEST)) for value in values)
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def _to_pixels(values: tuple[int, int, int, int], width: int, height: int) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = values
    return x0 * width / 1000, y0 * height / 1000, x1 * width / 1000, y1 * height / 1000


def _four_numbers(box: Sequence[float]) -> tuple[float, ...]:
    """Corners as given, checked."""
    try:
        values = tuple(float(value) for value in box)
    except (TypeError, ValueError):
        values = ()
    if len(values) != 4 or any(value != value or abs(value) == float("inf") for value in values):
        raise InputError(f"A box was given as {box!r:.80}; it must be four finite numbers (x1, y1, x2, y2) in pixels.")
    return values


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise InputError(f"The picture's size is given as {width} x {height}; both must be at least 1 pixel.")
