"""Boxes out of text, into text, and onto pictures."""

from __future__ import annotations

import random
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from sat_models.errors import InputError
from sat_models.processing import phrases
from sat_models.processing.box_forms import BOX_FORMS
from sat_models.processing.boxes import Box, count_boxes, format_boxes, parse_boxes, strip_boxes
from sat_models.processing.drawing import draw_boxes

A, B = "[[001,002,003,004]]", "[[005,006,007,008]]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"A red circle {A} is left of a blue square {B}.", ["A red circle", "a blue square"]),
        (f"Where is the man with a hat? {A}", ["the man with a hat"]),
        (f"Can you find the green box? {A}", ["the green box"]),
        (f"What is that? A cat. {A}", ["A cat"]),
        ("the two dogs [[001,002,003,004;005,006,007,008]]", ["the two dogs", "the two dogs"]),
        (A, [""]),
        (f"at {A}", [""]),
        (f"Yes. {A}", [""]),
        (f"{A} is the dog", [""]),
        (f"The red circle is at {A}", ["The red circle"]),
        (f"The dog is here: {A}.", ["The dog"]),
        (f"a man {A} with a hat {A} {B}", ["a man", "a hat", "a hat"]),
        (f"two dogs {A} and {B}", ["two dogs", "two dogs"]),
        (f"a dog {A}. a dog {B}", ["a dog", "a dog"]),
        (f"People {A} sit on wooden benches {B}", ["People", "wooden benches"]),
        (f"a black and white cat {A}", ["a black and white cat"]),
        (f"A cup of tea {A} to the left of the plate{B}", ["A cup of tea", "the plate"]),
        (f"the man on the left {A}, one star in the top left {B}", ["the man on the left", "one star in the top left"]),
        (f"the man's hat {A} next to a parked car {B}", ["the man's hat", "a parked car"]),
        (f"Click the 'Submit' button {A}", ["the 'Submit' button"]),
        (f"The red one is {A}", ["The red one"]),
        (f"TYPE: CogVLM at the box {A}", ["the box"]),
        (f"一只狗{A}", ["一只狗"]),
    ],
)
def test_phrases(text: str, expected: list[str]) -> None:
    assert [box.phrase for box in parse_boxes(text, 10, 10, use_spacy=False)] == expected


def test_pixels() -> None:
    (box,) = parse_boxes("a dog [[100,200,300,999]]", 640, 480)
    assert box == Box("a dog", (64.0, 96.0, 192.0, 479.52), (100, 200, 300, 999))
    assert box.rounded() == (64, 96, 192, 480)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[ 1 , 2, 3,4 ]]", [(1, 2, 3, 4)]),
        ("[ [1,2,3,4 ; 5,6,7,8] ]", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("[[1,2,3,4],[5,6,7,8]]", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("[[1,2,\n3,4]]", [(1, 2, 3, 4)]),
        (f"{A}{A}", [(1, 2, 3, 4), (1, 2, 3, 4)]),
        ("[[9,8,1,2]]", [(1, 2, 9, 8)]),
        ("[[0,0,1000,12345]]", [(0, 0, 999, 999)]),
        ("[[1,2,3;1,2,3,4;1,2,3,4,5]]", [(1, 2, 3, 4)]),
        ("[[1,2,3,4;]]", [(1, 2, 3, 4)]),
        ("[[1,2,3]] [[]] [[;]] [[a,b,c,d]] [[-1,2,3,4]] 1,2,3,4 [1,2,3] [1,2,3,4,5]", []),
        ("[[1,2,3,4", []),
        ("", []),
        ("[[１,2,3,4]]", []),
    ],
)
def test_forms(text: str, expected: list[tuple[int, ...]]) -> None:
    assert [box.normalized for box in parse_boxes(text, 10, 10)] == expected


@pytest.mark.parametrize(
    ("text", "expected", "form"),
    [
        ("[0.12, 0.34, 0.56, 0.78]", (24.0, 34.0, 112.0, 78.0), "[]/1"),
        ("[[0.12, 0.34, 0.56, 0.78]]", (24.0, 34.0, 112.0, 78.0), "[[]]/1"),
        ("[.12,.34,.56,1.0]", (24.0, 34.0, 112.0, 100.0), "[]/1"),
        ("{<12><34><56><78>}", (24.0, 34.0, 112.0, 78.0), "{<>}/100"),
        ("{ <12> <34> <56> <100> }", (24.0, 34.0, 112.0, 100.0), "{<>}/100"),
        ("[120, 340, 560, 780]", (24.0, 34.0, 112.0, 78.0), "[]/1000"),
        ("(120,340),(560,780)", (24.0, 34.0, 112.0, 78.0), "(),()/1000"),
        ("<box>(120, 340) (560, 780)</box>", (24.0, 34.0, 112.0, 78.0), "(),()/1000"),
        ("[[120.0, 340.0, 560.0, 780.0]]", (24.0, 34.0, 112.0, 78.0), "[[]]/1000"),
        ("[560, 780, 120, 340]", (24.0, 34.0, 112.0, 78.0), "[]/1000"),
        ("{<56><78><12><34>}", (24.0, 34.0, 112.0, 78.0), "{<>}/100"),
        ("{<12><34><56><780>}", (24.0, 34.0, 112.0, 100.0), "{<>}/100"),
    ],
)
def test_forms_of_other_families(text: str, expected: tuple[float, ...], form: str) -> None:
    (box,) = parse_boxes(f"the dog {text}.", 200, 100, use_spacy=False)
    assert box.pixels == pytest.approx(expected) and box.form == form and box.phrase == "the dog"
    assert count_boxes(text) == 1 and strip_boxes(f"the dog {text}.") == "the dog."


def test_boxes_of_internvl_reach_the_edge_and_stand_in_tags() -> None:
    form = BOX_FORMS["thousand in tags"]
    whole, inner = (0, 0, 200, 100), (20, 34, 112, 78)
    text = format_boxes([whole, inner], 200, 100, form)
    assert text == "<box>[[0, 0, 1000, 1000], [100, 340, 560, 780]]</box>"
    for said in (f"<ref>the dog</ref>{text}", "the dog[[0, 0, 1000, 1000], [100, 340, 560, 780]]"):
        boxes = parse_boxes(said, 200, 100, use_spacy=False, form=form)
        assert boxes[0].pixels == whole and boxes[1].pixels == pytest.approx(inner)
        assert {box.phrase for box in boxes} == {"the dog"}
    assert parse_boxes("[[0, 0, 1000, 1000]]", 200, 100)[0].pixels[2] < 200, "CogVLM's end at 999"


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        (
            "<p>a black dog</p>{<1><2><3><4>}<delim>{<5><6><7><8>} and <p>it</p> {<1><2><3><4>}",
            ["a black dog"] * 2 + ["it"],
        ),
        ("<ref>dogs</ref><box>(1,2),(3,4)</box><box>(5,6),(7,8)</box>", ["dogs", "dogs"]),
        ("<ref>a cat</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>", ["a cat", "a cat"]),
        ("A dog [0.1, 0.2, 0.3, 0.4] and a cat [0.5, 0.2, 0.6, 0.4].", ["A dog", "a cat"]),
    ],
)
def test_phrases_of_other_families(text: str, phrases: list[str]) -> None:
    assert [box.phrase for box in parse_boxes(text, 10, 10, use_spacy=False)] == phrases


@pytest.mark.parametrize(
    "text", ["(1,2)", "[1,2,3]", "{<1><2><3>}", "[1, 2, 3, 4, 5]", "{1,2,3,4}", "f(1, 2) + (3)", "1,2,3,4"]
)
def test_what_is_no_box(text: str) -> None:
    assert parse_boxes(text, 10, 10) == [] and strip_boxes(text) == text


@pytest.mark.parametrize(
    ("text", "pixels", "form"),
    [
        ("[-0.01, 0.2, 0.5, 0.6]", (0, 20, 100, 60), "[]/1"),
        ("(120, 340, 560, 780)", (24, 34, 112, 78), "(),()/1000"),
        ("(0.12, 0.34, 0.56, 0.78)", (24, 34, 112, 78), "(),()/1"),
        ("[[120,340],[560,780]]", (24, 34, 112, 78), "[[]]/1000"),
        ("[[0.12, 0.34], [0.56, 0.78]]", (24, 34, 112, 78), "[[]]/1"),
    ],
)
def test_boxes_that_models_write_off_the_form(text: str, pixels: tuple[float, ...], form: str) -> None:
    """Below 0, in round brackets, corner by corner."""
    (box,) = parse_boxes(text, 200, 100)
    assert box.pixels == pytest.approx(pixels) and box.form == form and count_boxes(text) == 1
    assert len(parse_boxes("[[1,2],[3,4],[5,6],[7,8]]", 9, 9)) == 2 and not parse_boxes("[[1,2],[3,4],[5,6]]", 9, 9)


def test_boxes_of_a_padded_square() -> None:
    form = BOX_FORMS["unit of square"]
    (box,) = parse_boxes("[0.25, 0.25, 0.75, 0.75]", 200, 100, form=form)  # 50 pixels above and below
    assert box.pixels == (50.0, 0.0, 150.0, 100.0)
    (tall,) = parse_boxes("[0.0, 0.0, 1.0, 0.5]", 100, 200, form=form)
    assert tall.pixels == (0.0, 0.0, 100.0, 100.0) and tall.normalized == (0, 0, 999, 500)
    (whole,) = parse_boxes("[0, 0, 1, 1]", 100, 100, form=form)
    assert whole.pixels == (0.0, 0.0, 100.0, 100.0)
    (tiny,) = parse_boxes("[0, 0, 1, 1]", 100, 100)
    assert tiny.pixels == (0.0, 0.0, 0.1, 0.1), "without a family, whole numbers are of a thousand"


@pytest.mark.parametrize("name", BOX_FORMS)
@pytest.mark.parametrize("size", [(200, 100), (90, 230), (64, 64)])
def test_every_form_is_read_as_it_is_written(name: str, size: tuple[int, int]) -> None:
    form, chance = BOX_FORMS[name], random.Random(name)
    step = max(size) / form.scale if form.scale > 1 else max(size) / 100
    for _ in range(50):
        boxes = []
        for _ in range(chance.randrange(1, 4)):
            x, y = sorted(chance.sample(range(size[0]), 2)), sorted(chance.sample(range(size[1]), 2))
            boxes.append((x[0], y[0], x[1], y[1]))
        read = parse_boxes(format_boxes(boxes, *size, form), *size, form=form)
        assert [box.pixels for box in read] == [pytest.approx(box, abs=step) for box in boxes]


def test_format() -> None:
    assert format_boxes([(86, 540, 400, 760)], 1000, 1000) == "[[086,540,400,760]]"
    assert format_boxes([(0, 0, 5, 5), (1, 1, 10, 20)], 10, 20) == "[[000,000,500,250;100,050,999,999]]"
    assert format_boxes([(9, 9, 1, 1)], 10, 10) == "[[100,100,900,900]]"
    assert format_boxes([(-5, -1e30, 1e30, 50)], 10, 10) == "[[000,000,999,999]]"
    assert format_boxes([], 10, 10) == ""


def test_round_trip() -> None:
    rng = random.Random(0)
    for _ in range(500):
        x0, x1 = sorted(rng.choices(range(1000), k=2))
        y0, y1 = sorted(rng.choices(range(1000), k=2))
        width, height = rng.randint(1, 5000), rng.randint(1, 5000)
        text = f"[[{x0:03d},{y0:03d},{x1:03d},{y1:03d};000,000,999,999]]"
        assert format_boxes(parse_boxes(text, width, height), width, height) == text


@pytest.mark.parametrize(
    "box", [(1, 2, 3), (1, 2, 3, 4, 5), (1, 2, 3, float("nan")), (1, 2, 3, float("inf")), "abcd", 7]
)
def test_format_refuses(box: object) -> None:
    with pytest.raises(InputError, match="four finite numbers"):
        format_boxes([box], 10, 10)


@pytest.mark.parametrize("size", [(0, 5), (5, -1)])
def test_bad_size(size: tuple[int, int]) -> None:
    for function, first in ((parse_boxes, A), (format_boxes, [])):
        with pytest.raises(InputError, match="at least 1 pixel"):
            function(first, *size)


def test_strip() -> None:
    assert strip_boxes(f"A dog {A} and a cat {B}.") == "A dog and a cat."


def test_boxes_are_counted_as_written() -> None:
    text = f"a cup {A}, dogs [[001,002,003,004;005,006]] and [[5005]], none in [it]"
    assert count_boxes(text) == 4 and len(parse_boxes(text, 1000, 1000)) == 2
    assert count_boxes("A cat.") == 0


def test_parsing_is_linear() -> None:
    for text in (
        "(1,2)" + " " * 50000 + "x",
        "(1,2)," * 20000,
        "{<1>" * 20000,
        "[1, " * 20000,
        "[0." + "1" * 50000,
        "<p>" * 20000 + A,
        "[[" * 20000,
        "[[1,2,3,4;" * 20000,
        "word " * 20000 + A,
        "[" * 50000 + "1]]",
        "-" * 50000 + A,
        "[[1],[" * 9999,
    ):
        parse_boxes(text, 10, 10, use_spacy=False)


def test_spacy_is_used_where_its_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def nlp(text: str) -> SimpleNamespace:
        return SimpleNamespace(noun_chunks=[SimpleNamespace(text=word) for word in text.split()])

    monkeypatch.setattr(phrases.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=lambda name: nlp))
    phrases._spacy.cache_clear()
    assert parse_boxes(f"one two {A}", 10, 10)[0].phrase == "two"
    assert parse_boxes(f"one two {A}", 10, 10, use_spacy=False)[0].phrase == "one two"
    phrases._spacy.cache_clear()


def test_drawing() -> None:
    image = Image.new("RGB", (200, 100), "white")
    boxes = [
        Box("a dog", (20, 30, 80, 70), (0, 0, 0, 0)),
        Box("A dog", (120, 30, 180, 70), (0, 0, 0, 0)),
        Box("a cat", (90, 30, 110, 70), (0, 0, 0, 0)),
    ]
    drawn = draw_boxes(image, boxes)
    assert image.getcolors() == [(20000, (255, 255, 255))] and drawn.size == image.size
    dog, other_dog, cat = drawn.getpixel((20, 50)), drawn.getpixel((120, 50)), drawn.getpixel((90, 50))
    assert dog == other_dog != cat and dog != (255, 255, 255)
    assert draw_boxes(image, boxes, labels=False).tobytes() != drawn.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (300, 2), (64, 64)])
def test_drawing_survives_odd_boxes(mode: str, size: tuple[int, int]) -> None:
    inf, nan = float("inf"), float("nan")
    corners = [(0, 0, 0, 0), (-50, -50, 1e9, 1e9), (9, 9, 1, 1), (inf, 0, 1, 1), (nan, 0, 1, 1), (1, 2), (None,) * 4]
    names = ["", "x" * 500, "你好 😀\nline", "tab\t", "\0", "\ud800", "a"]
    boxes = [Box(name, corner, (0, 0, 0, 0)) for name, corner in zip(names, corners, strict=True)]
    boxes += [Box(name, (0, 0, 5, 5), (0, 0, 0, 0)) for name in names]
    assert draw_boxes(Image.new(mode, size), boxes).size == size
