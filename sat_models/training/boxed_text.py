"""Boxes in the texts of training data: kept in pixels, and written in a family's own form when the model is known.

A text of a record that has boxes holds marks: one for each group of boxes, others around names and for the form's
example. Only such records are filled in, so that the same letters in other texts stay what they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sat_models.processing.box_forms import BOX_FORMS, BoxForm, Corners
from sat_models.processing.boxes import format_boxes
from sat_models.processing.prompts import Turn

BOX_MARK = "<|box|>"
FORM_MARK = "<|box form|>"
NAME_MARKS = ("<|name|>", "<|/name|>")
MARKS = (BOX_MARK, FORM_MARK, *NAME_MARKS)


@dataclass(frozen=True)
class BoxGroup:
    """Boxes that a text writes together.

    Attributes:
        boxes: (x0, y0, x1, y1) in pixels of the image, in order and inside of it.
        size: width and height of the image in pixels.
        image: its number among the record's, from 0.
        name: what the boxes are called, for drawings; "" where nobody says.
    """

    boxes: tuple[Corners, ...]
    size: tuple[int, int]
    image: int = 0
    name: str = ""


def named(name: str) -> str:
    """A name, marked as one."""
    return name.join(NAME_MARKS)


def filled_turns(turns: Sequence[Turn], groups: Sequence[BoxGroup], form: BoxForm | None) -> tuple[Turn, ...]:
    """Turns with their groups of boxes, in order, written in a form; None is CogVLM's."""
    form, waiting = form or BOX_FORMS["thousand"], iter(groups)
    return tuple((_filled(question, waiting, form), _filled(answer, waiting, form)) for question, answer in turns)


def _filled(text: str, groups: Iterator[BoxGroup], form: BoxForm) -> str:
    for mark, written in zip((*NAME_MARKS, FORM_MARK), (*form.names, form.example), strict=True):
        text = text.replace(mark, written)
    first, *others = text.split(BOX_MARK)
    return first + "".join(_written(next(groups), form) + other for other in others)


def _written(group: BoxGroup, form: BoxForm) -> str:
    return format_boxes(group.boxes, *group.size, form)
