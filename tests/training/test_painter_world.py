"""The world as a painter has it: prompts, scenes that are what they ask for, and the rule that sees what is there."""

from __future__ import annotations

import random

import pytest
from PIL import Image, ImageDraw, ImageFilter

from sat_models.evaluation.wishes import Wanted, Wish
from sat_models.shapes import prompts
from sat_models.shapes.drawing import draw
from sat_models.shapes.looking import background_of, look, scores_of
from sat_models.shapes.other_eyes import draw_other, other_scene
from sat_models.shapes.prompts import BACKGROUNDS, KINDS, held_out, sample_scene_of, sample_wish
from sat_models.shapes.scenes import Scene, sample_scene

RED_CIRCLE, BLUE_SQUARE = Wanted("circle", "red"), Wanted("square", "blue")


def drawn(*shapes: tuple[str, str, tuple[int, int, int, int]], ground: str = "white") -> Image.Image:
    """By Pillow's pen: form, colour, box."""
    image = Image.new("RGB", (96, 96), ground)
    pen = ImageDraw.Draw(image)
    for form, color, (x0, y0, x1, y1) in shapes:
        if form == "triangle":
            pen.polygon([(x0, y1), (x1, y1), ((x0 + x1) / 2, y0)], fill=color)
        else:
            (pen.ellipse if form == "circle" else pen.rectangle)((x0, y0, x1, y1), fill=color)
    return image


def said(scene: Scene) -> list[tuple]:
    return sorted((thing.color, thing.form, thing.size) for thing in scene.objects)


def saw(image: Image.Image) -> list[tuple]:
    return sorted((str(one.color), str(one.form), one.size) for one in look(image))


@pytest.mark.parametrize("kind", KINDS)
def test_the_rule_finds_what_a_prompt_asks_for_on_its_own_scenes(kind: str) -> None:
    rng = random.Random(f"rule/{kind}")
    for _ in range(60):
        wish = sample_wish(rng, kind=kind)
        scene = sample_scene_of(wish, rng)
        image = draw(scene)
        assert scores_of(wish, image) == dict.fromkeys(scores_of(wish, image), 1.0), wish
        assert saw(image) == said(scene)
        assert BACKGROUNDS[background_of(image)] == scene.background.colors[0]


@pytest.mark.parametrize("hand", ["own", "digits", "other"])
def test_the_rule_sees_the_whole_world(hand: str) -> None:
    """Gradients, noise, outlines, JPEG, every shade; and pictures of other code."""
    rng, wrong = random.Random(f"rule/{hand}"), 0
    for _ in range(100):
        scene = other_scene(rng) if hand == "other" else sample_scene(rng, digit_share=float(hand == "digits"))
        wrong += saw((draw_other if hand == "other" else draw)(scene)) != said(scene)
    assert wrong <= 1


WRONG = {
    "another colour": ((("circle", "blue", (10, 10, 40, 40)),), {"color", "names", "right"}),
    "another form": ((("square", "red", (10, 10, 40, 40)),), {"form", "names", "right"}),
    "one too many": (
        (("circle", "red", (10, 10, 40, 40)), ("circle", "blue", (50, 50, 90, 90))), {"count", "right"}
    ),
    "nothing": ((), {"count", "color", "form", "names", "right"}),
    "an oblong": ((("circle", "red", (10, 10, 40, 80)),), {"form", "names", "right"}),
    "a blob": (
        (("circle", "red", (10, 10, 40, 40)), ("square", "red", (36, 10, 80, 20))), {"form", "names", "right"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_rule_says_what_is_wrong(name: str) -> None:
    shapes, wrong = WRONG[name]
    scores = scores_of(Wish("A red circle.", "one", (RED_CIRCLE,), only=True), drawn(*shapes))
    assert {key for key, value in scores.items() if not value} == wrong


def test_soft_edges_change_nothing() -> None:
    """Smoothed images and shapes over grey: a triangle keeps its corners, and nothing else becomes one."""
    shapes = (
        ("triangle", "green", (10, 10, 28, 27)),
        ("circle", "red", (50, 8, 68, 26)),
        ("square", "blue", (40, 60, 58, 78)),
    )
    for ground in ("gray", "black", "white"):
        soft = drawn(*shapes, ground=ground).filter(ImageFilter.GaussianBlur(1))
        assert saw(soft) == [("blue", "square", "small"), ("green", "triangle", "small"), ("red", "circle", "small")]


def test_colours_and_forms_may_be_there_but_bound_the_other_way_round() -> None:
    wish = Wish("A red circle and a blue square.", "two", (RED_CIRCLE, BLUE_SQUARE), only=True)
    image = drawn(("square", "red", (5, 5, 35, 35)), ("circle", "blue", (50, 50, 90, 90)))
    scores = scores_of(wish, image)
    assert (scores["color"], scores["form"], scores["names"], scores["right"]) == (1, 1, 0, 0)


@pytest.mark.parametrize(("place", "right"), [("left", 1), ("right", 0), ("above", 1), ("below", 0)])
def test_places_sizes_and_backgrounds(place: str, right: int) -> None:
    small = Wanted("circle", "red", "small", places=((place, 1),))
    wish = Wish("", "places", (small, BLUE_SQUARE), only=True, background="black")
    image = drawn(("circle", "red", (5, 5, 25, 25)), ("square", "blue", (50, 50, 90, 90)), ground="black")
    scores = scores_of(wish, image)
    assert (scores["place"], scores["right"], scores["background"]) == (right, right, 1)
    assert scores_of(Wish("", "", (Wanted("circle", size="large"),)), image)["names"] == 0


def test_many_of_a_kind_are_counted() -> None:
    image = drawn(("circle", "red", (5, 5, 25, 25)), ("circle", "blue", (50, 50, 90, 90)))
    assert scores_of(Wish("", "", (Wanted("circle", count=2),), only=True), image)["right"] == 1
    assert scores_of(Wish("", "", (Wanted("shape", count=3),), only=True), image)["right"] == 0


def test_a_prompts_names_are_of_training_or_of_tests() -> None:
    rng = random.Random(0)
    for kind in ("two", "three", "places"):
        assert all(held_out(sample_wish(rng, kind=kind, test=True).things) for _ in range(30))
        assert not any(held_out(sample_wish(rng, kind=kind).things) for _ in range(30))


def test_all_words_are_known_and_prompts_are_the_seeds_own() -> None:
    known = set(prompts.vocabulary())
    texts = [sample_wish(random.Random(n)).prompt for n in range(400)]
    assert texts == [sample_wish(random.Random(n)).prompt for n in range(400)]
    words = " ".join(texts).lower().replace(".", " . ").replace(",", " , ").split()
    assert set(words) <= known and len(set(texts)) > 300
    assert {"beneath", "circles", "three", "navy", "small"} <= set(words)
