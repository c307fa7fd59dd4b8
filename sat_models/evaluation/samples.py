"""One question of a benchmark, whichever file format it came from."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sat_models.errors import InputError
from sat_models.files import refuse_packed, utf8_bytes
from sat_models.processing.image import load_image
from sat_models.text import DoubleKeyError, unique_keys

logger = logging.getLogger(__name__)

_SHOWN = 3

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
    """A JSON file, of UTF-8, or of UTF-16 or 32 with the mark that says so.

    Raises:
        InputError: it is missing or no JSON.
    """
    try:
        return json.loads(utf8_bytes(path), object_pairs_hook=unique_keys)
    except OSError as error:
        raise unreadable(path, error) from error
    except DoubleKeyError as error:
        raise InputError(f"annotation file '{path}': {error}. Keep one of them.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"annotation file '{path}' is not JSON ({error}). Download it again.") from error


def read_text(path: Path) -> str:
    """A text file of UTF-8, or of UTF-16 or 32 with the mark that says so.

    Raises:
        InputError: it is missing, or of another encoding.
    """
    try:
        return utf8_bytes(path).decode()
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"'{path}' is not UTF-8 ({error.reason} at byte {error.start}). Convert it.") from error


class _PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, numbers and text; a pickle that names any class or function is refused, so none can run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_plain_pickle(path: Path) -> Any:
    """A pickle of lists, dicts, numbers and text, as RefCOCO is published.

    Raises:
        InputError: it is missing, damaged, or names code.
    """
    try:
        data = path.read_bytes()
        refuse_packed(path, data)
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except OSError as error:
        raise unreadable(path, error) from error
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError) as error:
        raise InputError(
            f"'{path}' is no pickle of plain data ({error}). Give RefCOCO's refs(...).p, or the same list as JSON."
        ) from error


def is_file(path: Path) -> bool:
    """True if it is one; a name that no file can have is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def with_images(samples: Sequence[Sample], on_missing: str) -> list[Sample]:
    """The samples whose images can be read. Each is decoded once, so that a damaged one is known as soon as a missing
    one is: before weights are read and questions asked.

    Args:
        on_missing: "error" or "skip": what is done about others.

    Raises:
        InputError: images are missing or damaged (with "error"), or all are.
    """
    each = list(dict.fromkeys(sample.image for sample in samples))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding leaves the interpreter to others
        faults = dict(zip(each, pool.map(_fault, each), strict=True))
    good = [sample for sample in samples if faults[sample.image] is None]
    bad = [sample for sample in samples if faults[sample.image] is not None]
    if bad and (on_missing == "error" or not good):
        raise InputError(
            f"{len(bad)} of {len(samples)} samples have no image that can be read, the first is sample {bad[0].id}: "
            f"{faults[bad[0].image]} Check --images, or leave such samples out with --on_missing skip."
        )
    if bad:
        shown = " ".join(dict.fromkeys(str(faults[sample.image]) for sample in bad[:_SHOWN]))
        logger.warning(
            "%d of %d samples left out, without an image that can be read: %s", len(bad), len(samples), shown
        )
    return good


def _fault(image: Path) -> str | None:
    """Why an image cannot be read, if it cannot."""
    try:
        load_image(image)
    except InputError as error:
        return str(error)
    return None


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
