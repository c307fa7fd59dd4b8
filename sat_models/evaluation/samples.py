"""One question of a benchmark, whichever file format it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sat_models.errors import InputError

PixelBox = tuple[float, float, float, float]
"""(x1, y1, x2, y2) in pixels of the picture."""


@dataclass(frozen=True)
class Sample:
    """A question about a picture and what is right.

    Attributes:
        id: unique in its file; predictions are found again by it.
        image: the picture's file.
        words: what the prompt of the task is filled with: `question`, `expression` or `box`; empty for captions.
        references: answers of people; for boxes, the phrases that they belong to.
        boxes: right boxes; for `visual7w` pointing, all choices with the right one first.
        choices: for `visual7w` telling, all answers to choose from with the right one first.
        kind: a group that scores are given for, too, such as the type of a question.
    """

    id: str
    image: Path
    words: Mapping[str, Any] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    boxes: tuple[PixelBox, ...] = ()
    choices: tuple[str, ...] = ()
    kind: str = ""


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        InputError: it is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise InputError(f"annotation file '{path}' is not JSON ({error}). Download it again.") from error


def unreadable(path: Path, error: OSError) -> InputError:
    """An annotation file that is missing, or may not be read."""
    return InputError(f"annotation file '{path}' cannot be read ({error.strerror or error}). Check the path.")


def corner_box(x: float, y: float, width: float, height: float) -> PixelBox:
    """A box from its corner and size."""
    return float(x), float(y), float(x + width), float(y + height)
