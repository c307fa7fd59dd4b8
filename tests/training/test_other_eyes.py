"""The world through other eyes: pictures and words that training has no part in."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest

from sat_models.shapes import questions
from sat_models.shapes.drawing import draw
from sat_models.shapes.held_out import held_out_items
from sat_models.shapes.other_eyes import WORDINGS, draw_other, other_scene, signed_distance
from sat_models.shapes.paraphrases import PARAPHRASES, frames
from sat_models.shapes.scenes import Background, Scene, ShapeObject

WHITE = Background("solid", ((255, 255, 255),))


def test_scenes_stay_in_the_documented_world() -> None:
    wide = outlined = 0
    for number in range(200):
        scene = other_scene(random.Random(number))
        assert 1 <= len(scene.objects) <= 3 and len({obj.name for obj in scene.objects}) == len(scene.objects)
        assert list(scene.objects) == sorted(scene.objects, key=lambda obj: obj.center)
        wide += scene.width != scene.height
        outlined += scene.objects[0].outline is not None
        for index, obj in enumerate(scene.objects):
            x0, y0, x1, y1 = obj.box
            assert 0 <= x0 < x1 <= scene.width and 0 <= y0 < y1 <= scene.height
            share = (x1 - x0) / min(scene.width, scene.height)
            low, high = {"small": (0.18, 0.26), "large": (0.34, 0.44)}[obj.size]
            assert low <= share <= high
            for other in scene.objects[:index]:
                a = other.box
                assert x1 <= a[0] or a[2] <= x0 or y1 <= a[1] or a[3] <= y0
    assert wide > 100 and outlined > 40


@pytest.mark.parametrize("form", ["circle", "square", "triangle"])
def test_both_hands_draw_the_same_shape(form: str) -> None:
    obj = ShapeObject("red", form, "large", (20, 30, 60, 70), (250, 0, 0), outline=(0, 0, 0), outline_width=2)
    scene = Scene(120, 100, WHITE, (obj,))
    ours, theirs = (np.asarray(hand(scene), float) for hand in (draw_other, draw))
    assert (np.abs(ours - theirs).max(-1) > 60).mean() < 0.02, "they differ at most along the edges"
    ys, xs = np.nonzero(ours[..., 1] < 200)
    assert abs(np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) - obj.box).max() <= 2
    assert ours[50, 40].tolist() == [250, 0, 0]
    inside = signed_distance(obj, 120, 100) < -2.5
    assert (ours[inside] == (250, 0, 0)).all()


def test_jpeg_is_seen_and_a_scene_is_drawn_the_same_twice() -> None:
    scene = next(s for n in range(50) if (s := other_scene(random.Random(n))).jpeg_quality)
    assert draw_other(scene).tobytes() == draw_other(scene).tobytes()
    assert len(np.unique(np.asarray(draw_other(scene)).reshape(-1, 3), axis=0)) > 30


def test_words_were_not_taught() -> None:
    lists = (
        questions.CAPTION_WORDINGS, questions.GROUNDED_WORDINGS, questions.REC_WORDINGS, questions.REG_WORDINGS,
        *questions.VQA_WORDINGS.values(), *PARAPHRASES.values(),
    )  # fmt: skip
    wordings = {wording for wordings in lists for wording in wordings}
    taught = wordings | {framed for wording in wordings for framed in frames(wording)}
    assert taught.isdisjoint(wording for wordings in WORDINGS.values() for wording in wordings)
    assert set(WORDINGS) == {"caption", "grounded_caption", "rec", "reg", *questions.VQA_KINDS}


def test_rewording_keeps_what_is_asked() -> None:
    rng = random.Random(0)
    for number in range(60):
        scene = other_scene(random.Random(number))
        qa = questions.any_question(scene, rng)
        other = questions.reworded(qa, WORDINGS, rng)
        assert other.question != qa.question and (other.answer, other.meta) == (qa.answer, qa.meta)
        assert all(word in other.question for word in qa.meta["words"].values())


def test_held_out_questions_of_other_eyes() -> None:
    own, other = (list(held_out_items(count=4, seed=0, versions=["chat"], other_eyes=eyes)) for eyes in (False, True))
    assert all(a.scene != b.scene for a, b in zip(own, other, strict=False))
    assert all(item.draw().size == item.size for item in other)
    asked = {item.qa.task: item for item in other}
    assert asked["rec"].prompt.count("{expression}") == 1 and asked["reg"].prompt.count("{box}") == 1
    assert other[0].draw().tobytes() == draw_other(other[0].scene).tobytes()


def test_digits_are_asked_for_where_they_stand() -> None:
    items = list(held_out_items(count=20, seed=0, versions=["chat"], digit_share=1.0))
    digits = [item for item in items if item.qa.kind == "digit"]
    assert len(digits) == sum(
        obj.digit is not None for scene in {item.image: item.scene for item in items}.values() for obj in scene.objects
    )
    assert all(item.choices[0] == item.qa.answer and len(set(item.choices)) == 4 for item in digits)


def test_frames_say_no_place_twice_and_keep_the_words() -> None:
    assert "What color is the circle in this image?" in frames("What color is the circle?")
    assert "Where is the red circle in the picture? answer in [[x0,y0,x1,y1]] format." in frames(
        "Where is the red circle? answer in [[x0,y0,x1,y1]] format."
    )
    for wording in PARAPHRASES["color"]:
        for framed in frames(wording):
            assert "{noun}" in framed and len(re.findall("image|picture|photo", framed)) <= 2
    assert not any(re.search("(image|picture).*(image|picture|photo)", f) for f in frames("Describe it in this image.")
                   if not f.startswith("Look at"))  # fmt: skip
