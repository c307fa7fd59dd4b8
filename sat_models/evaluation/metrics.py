"""Scores of text answers. Pure functions: text in, numbers or truth values out.

Boxes are `[x0, y0, x1, y1]` in 0-999, written `[[x0,y0,x1,y1]]`; several boxes of one phrase are separated by `;`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sat_models.processing.boxes import parse_boxes, strip_boxes

Box = tuple[int, int, int, int]

_SEPARATORS = re.compile(r"[,;.]|\band\b")
_ARTICLE = re.compile(r"^(?:a|an|the|one)\s+")


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at the end."""
    return " ".join(text.lower().split()).rstrip(" .!?")


def exact_match(answer: str, expected: str) -> bool:
    """Whether two answers are the same once normalised."""
    return normalise(answer) == normalise(expected)


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes, 0 where one is empty or reversed."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def box_iou(answer: str, box: Sequence[float]) -> float:
    """IoU of the first box of an answer with the true one; 0 without a box."""
    found = grounded_phrases(answer)
    return iou(found[0][1], box) if found else 0.0


def listed_names(text: str) -> list[str]:
    """What a sentence enumerates: `A red circle and a blue square.` -> `red circle`, `blue square`; boxes left out."""
    parts = _SEPARATORS.split(strip_boxes(text).lower())
    names = (_ARTICLE.sub("", " ".join(part.split())) for part in parts)
    return [name for name in names if name]


def grounded_phrases(text: str) -> list[tuple[str, Box]]:
    """Every box of a text in order, in 0-999, with the name it belongs to (no article; "" where there is none)."""
    found = parse_boxes(text, 1000, 1000, use_spacy=False)
    return [((listed_names(box.phrase) or [""])[-1], box.normalized) for box in found]


def caption_scores(answer: str, names: Iterable[str]) -> dict[str, bool]:
    """Compares what a caption enumerates with what is there.

    Returns:
        `every_object_named`; `nothing_invented` (a name that is not there, or one that is said more often than it is
        there, is invented); `right` = both.
    """
    said, there = Counter(listed_names(answer)), Counter(normalise(name) for name in names)
    named, invented = not there - said, bool(said - there)
    return {"right": named and not invented, "every_object_named": named, "nothing_invented": not invented}


def grounded_scores(answer: str, objects: Mapping[str, Sequence[float]], *, threshold: float = 0.5) -> dict[str, float]:
    """Compares a caption with boxes with the objects of the picture.

    Args:
        answer: text with a box after each phrase.
        objects: true box of each name.
        threshold: IoU from which a box counts as right.

    Returns:
        `right`: every object is there once, with a right box, and nothing else; `every_object_named` and
        `nothing_invented` as for captions; `found`: share of the objects with a right box.
    """
    boxes: dict[str, Box] = {}
    for name, box in grounded_phrases(answer):
        boxes.setdefault(name, box)
    found = [name in boxes and iou(boxes[name], box) >= threshold for name, box in objects.items()]
    scores = caption_scores(answer, objects)
    return {
        "right": scores["right"] and all(found),
        "every_object_named": scores["every_object_named"],
        "nothing_invented": scores["nothing_invented"],
        "found": sum(found) / max(1, len(found)),
    }
