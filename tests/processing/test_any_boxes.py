"""Boxes of any size in any form, and any text around them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_models.processing.box_forms import BOX_FORMS
from sat_models.processing.boxes import count_boxes, format_boxes, parse_boxes, strip_boxes

SIDES = st.integers(1, 5000)
SHARES = st.floats(0, 1, allow_nan=False)
PIECES = st.sampled_from(
    ["[", "]", "[[", "]]", "{", "}", "<", ">", "(", ")", ",", ";", " ", ".", "0", "1", "12", "999", "0.5", "-", "a dog",
     "<p>", "</p>", "<box>", "</box>", "<delim>", "[[001,002,003,004]]", "[0.1, 0.2, 0.3, 0.4]", "\n", "\u2028", "１"]
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(BOX_FORMS)), SIDES, SIDES, st.lists(st.tuples(*[SHARES] * 4), min_size=1, max_size=4))
def test_what_is_written_is_read(name: str, width: int, height: int, shares: list[tuple[float, ...]]) -> None:
    """To within a step of the form, and half of one for CogVLM, whose numbers end at 999."""
    form = BOX_FORMS[name]
    boxes = []
    for x0, y0, x1, y1 in shares:
        (left, right), (top, bottom) = sorted((x0 * width, x1 * width)), sorted((y0 * height, y1 * height))
        boxes.append((left, top, right, bottom))
    found = parse_boxes(format_boxes(boxes, width, height, form), width, height, form=form, use_spacy=False)
    sides = [max(width, height)] * 2 if form.square else [width, height]
    steps = [side / (form.scale if form.scale > 1 else 100) for side in sides] * 2
    assert len(found) == len(boxes)
    for box, right in zip(found, boxes, strict=True):
        assert all(abs(a - b) <= step * 1.001 for a, b, step in zip(box.pixels, right, steps, strict=True)), box
        x0, y0, x1, y1 = box.pixels
        assert 0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.lists(PIECES, max_size=30).map("".join), st.text(max_size=200)), SIDES, SIDES)
def test_any_text_is_read(text: str, width: int, height: int) -> None:
    boxes = parse_boxes(text, width, height, use_spacy=False)
    assert len(boxes) <= count_boxes(text)
    for box in boxes:
        x0, y0, x1, y1 = box.pixels
        assert 0 <= x0 <= x1 <= width and 0 <= y0 <= y1 <= height
        letters = iter(text)  # a phrase is text of the answer, without the marks that stood in it
        assert all(letter in letters for letter in box.phrase)
        assert all(0 <= value <= 999 for value in box.normalized) and box.form
    if not count_boxes(text):
        assert strip_boxes(text).split() == text.split() or any(mark in text for mark in ".,;:!?")


@pytest.mark.parametrize("form", [None, *BOX_FORMS.values()])
def test_a_box_may_be_a_point(form: object) -> None:
    (box,) = parse_boxes(format_boxes([(5, 5, 5, 5)], 10, 10, form), 10, 10, form=form)
    assert box.pixels == (5.0, 5.0, 5.0, 5.0)
