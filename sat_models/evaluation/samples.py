"""One question of a benchmark, whichever file format it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        prompt: what is asked about this sample; "": what is asked about all.
    """

    id: str
    image: Path
    words: Mapping[str, Any] = field(default_factory=dict)
    references: tuple[str, ...] = ()
    boxes: tuple[PixelBox, ...] = ()
    choices: tuple[str, ...] = ()
    kind: str = ""
    prompt: str = ""


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


def with_prompts(samples: Sequence[Sample], path: Path) -> list[Sample]:
    """Samples with prompts of their own.

    Args:
        path: a JSON object: sample id -> what is asked, with places for the sample's words.

    Raises:
        InputError: the file is missing or no such object, or has no prompt for a sample.
    """
    prompts = read_json(path)
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise InputError(f"'{path}' should hold one JSON object, sample id -> prompt.")
    missing = [sample.id for sample in samples if not prompts.get(sample.id)]
    if missing:
        raise InputError(
            f"'{path}' has no prompt for {len(missing)} of {len(samples)} samples, the first '{missing[0]}'. Do the "
            "prompts belong to these annotations?"
        )
    return [replace(sample, prompt=prompts[sample.id]) for sample in samples]


def unreadable(path: Path, error: OSError) -> InputError:
    """An annotation file that is missing, or may not be read."""
    return InputError(f"annotation file '{path}' cannot be read ({error.strerror or error}). Check the path.")


def corner_box(x: float, y: float, width: float, height: float) -> PixelBox:
    """A box from its corner and size."""
    return float(x), float(y), float(x + width), float(y + height)
