"""The test of the synthetic world (`scenes`): pictures never trained on, and what is asked about them.

`evaluation.shapes` asks these questions, `evaluation.public_formats` writes them as public benchmarks would; both score
an answer by `evaluation.tasks` against the same `Sample`, so their figures are the same.

Pictures come from random streams named `test/...`; those of training are named `train/...`, so the two never share a
picture by construction, whatever the seeds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sat_models.evaluation.samples import PixelBox, Sample, corner_box
from sat_models.evaluation.wishes import article
from sat_models.models.families import prompt_style
from sat_models.processing.boxes import strip_boxes
from sat_models.shapes import questions
from sat_models.shapes.drawing import draw
from sat_models.shapes.other_eyes import WORDINGS, draw_other, other_scene
from sat_models.shapes.questions import QA, VQA_KINDS, box_text
from sat_models.shapes.scenes import COLORS, FORMS, SIZES, Scene, ShapeObject, sample_scene

ANSWERS: dict[str, tuple[str, ...]] = {
    "color": COLORS,
    "form": FORMS,
    "count": ("0", "1", "2", "3"),
    "exist": ("yes", "no"),
    "size": SIZES,
    "left_right": ("left", "right"),
    "above_below": ("above", "below"),
    "digit": tuple("0123456789"),
}
"""By kind of a VQA question: the answers that a multiple choice is made of."""
CHOICES = 4
"""Most choices of a question, as in Visual7W."""
PEOPLE = 10
"""Answers to a question, as in VQAv2; here all are the same."""


@dataclass(frozen=True)
class EvalItem:
    """One question about the test picture number `image`, in one prompt version.

    Attributes:
        choices: of `rec` boxes, of `vqa` words, the right one first; empty for other tasks.
        other_eyes: drawn and worded by `other_eyes`.
    """

    image: int
    scene: Scene
    qa: QA
    version: str
    choices: tuple[PixelBox, ...] | tuple[str, ...] = ()
    other_eyes: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        return self.scene.width, self.scene.height

    @property
    def task(self) -> str:
        """Its name in `tasks.TASKS`."""
        return self.qa.task.replace("_", "-")

    @property
    def prompt(self) -> str:
        """The question with a place for what the sample says: `What is at {box}?`."""
        if self.qa.task == "rec":
            return self.qa.question.replace(self.qa.meta["expression"], "{expression}")
        if self.qa.task == "reg":
            return self.qa.question.replace(box_text(self.qa.meta["box"]), "{box}")
        return "{question}" if self.qa.task == "vqa" else self.qa.question

    @property
    def phrases(self) -> list[tuple[str, ShapeObject]]:
        """The phrases of a caption, as they stand there, with their objects."""
        named = [(article(thing.name), thing) for thing in self.scene.objects]
        first, thing = named[0]
        return [(first[0].upper() + first[1:], thing), *named[1:]]

    def draw(self) -> Image.Image:
        """The picture."""
        return (draw_other if self.other_eyes else draw)(self.scene)

    def thing(self) -> ShapeObject:
        """The object that `rec` or `reg` is about."""
        return next(thing for thing in self.scene.objects if thing.name == self.qa.meta["object"])

    def asked_box(self) -> tuple[float, float, float, float]:
        """Corner and size of the box in a question of `reg`, in pixels and fractions of them."""
        x0, y0, x1, y1 = self.qa.meta["box"]
        across, down = (length / 1000 for length in self.size)
        return x0 * across, y0 * down, (x1 - x0) * across, (y1 - y0) * down

    def sample(self) -> Sample:
        """The right answer, as a reader of the task's public format gives it; without id and file."""
        qa = self.qa
        if qa.task == "rec":
            expression = qa.meta["expression"]
            return _sample({"expression": expression}, references=(expression,), boxes=(_pixels(self.thing()),))
        if qa.task == "reg":
            box = corner_box(*self.asked_box())
            return _sample({"box": box}, references=(qa.answer,), boxes=(box,))
        if qa.task == "vqa":
            return _sample({"question": qa.question}, references=(qa.answer,) * PEOPLE)
        if qa.task == "caption":
            return _sample({}, references=(qa.answer,))
        phrases, things = zip(*self.phrases, strict=True)
        boxes = tuple(map(_pixels, things))
        return _sample({}, references=(strip_boxes(qa.answer),), boxes=boxes, choices=phrases)

    def choice_sample(self) -> Sample:
        """A question of `rec` or `vqa` as Visual7W would have it: the answer is one of `choices`."""
        words = {"question": self.qa.question}
        if self.qa.task == "rec":
            return _sample(words, boxes=self.choices)
        return _sample(words, references=(self.qa.answer,), choices=self.choices)


def held_out_scene(
    seed: int, image: int, *, max_objects: int = 3, digit_share: float = 0.0, other_eyes: bool = False
) -> Scene:
    """The test picture of this number."""
    if other_eyes:
        return other_scene(random.Random(f"test/other/{seed}/{image}"), max_objects=max_objects)
    return sample_scene(random.Random(f"test/{seed}/{image}"), max_objects=max_objects, digit_share=digit_share)


def held_out_items(
    *,
    count: int,
    seed: int,
    versions: Sequence[str],
    max_objects: int = 3,
    vqa_kinds: int = 3,
    canonical: bool = False,
    digit_share: float = 0.0,
    other_eyes: bool = False,
) -> Iterator[EvalItem]:
    """Questions about `count` pictures: one of each task (`vqa_kinds` for vqa), the same in every version.

    With `digit_share` that many large shapes carry a digit, and each is asked for. `other_eyes` takes pictures and
    words from there, which have no digits. Versions for short answers only (`vqa`) get the questions of the task vqa.
    """
    for version in versions:
        prompt_style(version)
    for image in range(count):
        scene = held_out_scene(seed, image, max_objects=max_objects, digit_share=digit_share, other_eyes=other_eyes)
        rng = random.Random(f"test/{seed}/{image}/questions")
        asked = [
            questions.caption(scene, rng, canonical=canonical),
            questions.grounded_caption(scene, rng, canonical=canonical),
            questions.rec(scene, rng, rng.choice(scene.objects), canonical=canonical),
            questions.reg(scene, rng, rng.choice(scene.objects), canonical=canonical),
        ]
        kinds = rng.sample(VQA_KINDS, len(VQA_KINDS))
        possible = (questions.vqa(scene, rng, kind=kind, canonical=canonical) for kind in kinds)
        asked += [qa for qa in possible if qa][:vqa_kinds]
        asked += [
            questions.digit(scene, rng, obj, canonical=canonical) for obj in scene.objects if obj.digit is not None
        ]
        if other_eyes:
            asked = [questions.reworded(qa, WORDINGS, rng) for qa in asked]
        chooser = random.Random(f"test/{seed}/{image}/choices")
        chosen = [(qa, _choices(scene, qa, chooser)) for qa in asked]
        for version in versions:
            yield from (
                EvalItem(image, scene, qa, version, choices, other_eyes)
                for qa, choices in chosen
                if version != "vqa" or qa.task == "vqa"
            )


def _choices(scene: Scene, qa: QA, rng: random.Random) -> tuple[PixelBox, ...] | tuple[str, ...]:
    """Boxes of the picture's objects, filled up with other places; or words that answer such a question."""
    if qa.task == "rec":
        objects = sorted(scene.objects, key=lambda thing: thing.name != qa.meta["object"])
        places = [_place(scene, rng) for _ in range(CHOICES - 1)]
        return (*map(_pixels, objects), *places)[:CHOICES]
    if qa.task == "vqa":
        wrong = [word for word in ANSWERS[qa.kind] if word != qa.answer]
        return (qa.answer, *rng.sample(wrong, min(CHOICES - 1, len(wrong))))
    return ()


def _place(scene: Scene, rng: random.Random) -> PixelBox:
    """A square somewhere in the picture."""
    side = min(scene.width, scene.height) // 5
    return corner_box(rng.randrange(scene.width - side), rng.randrange(scene.height - side), side, side)


def _pixels(thing: ShapeObject) -> PixelBox:
    x0, y0, x1, y1 = map(float, thing.box)
    return x0, y0, x1, y1


def _sample(words: Mapping[str, Any], **right: tuple) -> Sample:
    return Sample("", Path(), words, **right)
