"""Boxes in a model's text: `[[x0,y0,x1,y1]]` <-> pixels, and the phrase each belongs to.

Coordinates in the text are three-digit integers 000-999: x relative to the width, y to the height, times 1000, top-left
and bottom-right corner; several boxes of one phrase are separated by `;` (CogVLM, arXiv 2311.03079, section 4.3).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sat_models.errors import InputError
from sat_models.processing.phrases import phrase_before

logger = logging.getLogger(__name__)

LARGEST = 999
"""The largest coordinate the format can write."""

_GROUP = re.compile(r"\[\s*\[([\d\s,;]*(?:\](?:\s*[,;])?\s*\[[\d\s,;]*)*)\]\s*\]")
_BETWEEN = re.compile(r";|\]\s*[,;]?\s*\[")


@dataclass(frozen=True)
class Box:
    """One box.

    Attributes:
        phrase: the noun phrase in front of it, "" if there is none.
        pixels: (x1, y1, x2, y2) in pixels of the picture, fractions kept; x1 <= x2, y1 <= y2.
        normalized: the same as integers 0-999, as in the text.
    """

    phrase: str
    pixels: tuple[float, float, float, float]
    normalized: tuple[int, int, int, int]

    def rounded(self) -> tuple[int, int, int, int]:
        """`pixels` as whole numbers."""
        return tuple(round(value) for value in self.pixels)


def parse_boxes(text: str, width: int, height: int, *, use_spacy: bool | None = None) -> list[Box]:
    """All boxes in `text`, in order; equal boxes and repeated phrases are all kept.

    Spaces are allowed anywhere, and so is `[[...],[...]]`. What the model got wrong is treated so: corners in the wrong
    order are swapped, values above 999 become 999, and a box without exactly four values (or one that is not closed)
    is left out with a debug log, its neighbours kept.

    Args:
        text: a model's answer.
        width, height: of the picture in pixels.
        use_spacy: None uses spaCy's `en_core_web_sm` for phrases where installed; False never.

    Raises:
        InputError: a size below 1.
    """
    _check_size(width, height)
    boxes: list[Box] = []
    phrase, cursor = "", 0
    for group in _GROUP.finditer(text):
        found = phrase_before(text[cursor : group.start()], use_spacy=use_spacy)
        phrase = phrase if found is None else found  # a box right behind another has the same phrase
        cursor = group.end()
        for values in map(_four_values, _BETWEEN.split(group.group(1))):
            if values is not None:
                boxes.append(Box(phrase, _to_pixels(values, width, height), values))
    return boxes


def count_boxes(text: str) -> int:
    """Boxes that a text writes, those included that `parse_boxes` leaves out because they have not four values."""
    return sum(len(_BETWEEN.split(group.group(1))) for group in _GROUP.finditer(text))


def format_boxes(boxes: Iterable[Box | Sequence[float]], width: int, height: int) -> str:
    """The text of boxes: `[[086,540,400,760]]`, several separated by `;`, "" for none. The inverse of `parse_boxes`.

    Args:
        boxes: `Box`es or pixel corners (x1, y1, x2, y2); corners in the wrong order are swapped, what lies outside
            the picture is clamped to 000-999.
        width, height: of the picture in pixels.

    Raises:
        InputError: a size below 1, or corners that are not four finite numbers.
    """
    _check_size(width, height)
    texts = []
    for box in boxes:
        corners = box.pixels if isinstance(box, Box) else _four_numbers(box)
        scaled = [value * 1000 / size for value, size in zip(corners, (width, height, width, height), strict=True)]
        ordered = _ordered([round(max(-1, min(value, 1000))) for value in scaled])
        texts.append(",".join(f"{value:03d}" for value in ordered))
    return f"[[{';'.join(texts)}]]" if texts else ""


def strip_boxes(text: str) -> str:
    """`text` without its boxes, for reading aloud or for metrics."""
    without = _GROUP.sub("", text)
    return re.sub(r"\s+([.,;:!?])", r"\1", re.sub(r"[ \t]{2,}", " ", without)).strip()


def _four_values(text: str) -> tuple[int, int, int, int] | None:
    """The values of one box, in order and in range; None where there are not four."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 4 or not all(re.fullmatch(r"\d{1,9}", part, re.ASCII) for part in parts):
        logger.debug("box '%s' has not four values; left out", text)
        return None
    return _ordered([int(part) for part in parts])


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
