"""Boxes of training data drawn on their images, where the model will be told that they are.

Each box is written in the form of the model's family and read back, so that a drawing shows what is left of it then.
Boxes that stand in texts as the project's own form has them are drawn, too.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sat_models.errors import InputError
from sat_models.processing.box_forms import BoxForm
from sat_models.processing.boxes import Box, format_boxes, parse_boxes
from sat_models.processing.drawing import draw_boxes
from sat_models.processing.image import load_image
from sat_models.training.boxed_text import BoxGroup
from sat_models.training.records import ImageFile, Record

logger = logging.getLogger(__name__)

_OURS = re.compile(r"\d{4}_.*\.boxes\.png")


def draw_records(records: Sequence[Record], folder: Path, *, form: BoxForm | None = None, most: int = 50) -> list[Path]:
    """Writes `0001_<name>.boxes.png` and so on, one for each image that has boxes; earlier ones of these names go.

    Args:
        records: see `formats.read_records`.
        folder: made where missing; what else lies in it is left alone.
        form: of the model's family; None is CogVLM's.
        most: images to draw, the first ones.

    Raises:
        InputError: the folder cannot be written.
    """
    by_image: dict[ImageFile, list[Record]] = {}
    for record in records:
        for image in record.images:
            by_image.setdefault(image, []).append(record)
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in [file for file in folder.iterdir() if _OURS.fullmatch(file.name)]:
            old.unlink()
        for image, own in by_image.items():
            if len(written) == most:
                break
            if path := _draw(image, own, folder, len(written) + 1, form):
                written.append(path)
    except OSError as error:
        raise InputError(f"'{folder}' cannot be written ({error.strerror or error}). Choose another folder.") from error
    return written


def _draw(image: ImageFile, records: list[Record], folder: Path, number: int, form: BoxForm | None) -> Path | None:
    """The drawing of an image; None where it has no boxes, or cannot be read."""
    try:
        picture = load_image(image)
    except InputError as error:
        logger.warning("not drawn: %s", error)
        return None
    boxes = list(dict.fromkeys(box for record in records for box in _boxes(record, image, picture.size, form)))
    if not boxes:
        return None
    stem = image.stem if isinstance(image, Path) else "url"
    path = folder / f"{number:04d}_{stem[:80]}.boxes.png"
    draw_boxes(picture, boxes).save(path)
    return path


def _boxes(record: Record, image: ImageFile, size: tuple[int, int], form: BoxForm | None) -> Iterator[Box]:
    """The boxes of a record on an image."""
    if record.boxes is not None:
        for group in record.boxes:
            if record.images[group.image] == image:
                yield from _read_back(group, form)
    elif len(record.images) == 1:
        for text in (text for turn in record.turns for text in turn):
            yield from parse_boxes(text, *size, use_spacy=False, form=form)


def _read_back(group: BoxGroup, form: BoxForm | None) -> list[Box]:
    text = format_boxes(group.boxes, *group.size, form)
    return [dataclasses.replace(box, phrase=group.name) for box in parse_boxes(text, *group.size, form=form)]
