"""Questions and answers about a scene of the synthetic world (`scenes`).

Tasks: `caption`, `grounded_caption` (a box after each object), `rec` (box of a named object), `reg` (name of a boxed
object), `vqa` (one-word answers) and `chat` (several of these as turns of one conversation).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sat_models.evaluation.wishes import article
from sat_models.shapes.scenes import COLORS, FORMS, Scene, ShapeObject

TASKS = ("caption", "vqa", "rec", "reg", "grounded_caption", "chat")
VQA_KINDS = ("color", "form", "count", "exist", "size", "left_right", "above_below")
MIN_SEPARATION = 0.15  # of two centres / canvas, before one is called left of or above the other

# The first wording of each list is the documented one.
CAPTION_WORDINGS = (
    "Describe this image.",
    "Describe the image.",
    "Describe this picture.",
    "What is in this image?",
    "What do you see?",
    "Describe this image in detail.",
)
GROUNDED_WORDINGS = (
    "Describe this image with a box for each object.",
    "Describe the image with boxes.",
    "Describe this image and give the boxes of the objects.",
    "What do you see? Answer with boxes.",
)
REC_WORDINGS = (
    "Where is {expr}? answer in [[x0,y0,x1,y1]] format.",
    "Where is {expr}?",
    "Where is {expr}? Answer with a box.",
    "Give the box of {expr}.",
)
REG_WORDINGS = (
    "Tell me what you see within the designated area {box} in the picture.",
    "What is in the area {box}?",
    "Describe the object at {box}.",
    "What is at {box}?",
)
VQA_WORDINGS: dict[str, tuple[str, ...]] = {
    "color": ("What color is the {noun}?", "What is the color of the {noun}?", "What colour is the {noun}?"),
    "form": ("What shape is the {color} object?", "What form is the {color} shape?", "What shape is {color}?"),
    "count": ("How many {nouns} are there?", "How many {nouns} are in the image?", "Count the {nouns}."),
    "exist": ("Is there {name}?", "Is there {name} in the image?", "Do you see {name}?"),
    "size": (
        "Is the {name} small or large?",
        "What size is the {name}, small or large?",
        "Is the {name} large or small?",
        "What size is the {name}?",
    ),
    "left_right": (
        "Is the {name} left or right of the {other}?",
        "Is the {name} to the left or right of the {other}?",
        "Is the {name} right or left of the {other}?",
    ),
    "above_below": (
        "Is the {name} above or below the {other}?",
        "Is the {name} below or above the {other}?",
    ),
    "digit": ("What digit is on the {name}?", "What is the digit on the {name}?", "Tell me the digit on the {name}."),
}


@dataclasses.dataclass(frozen=True)
class QA:
    """One question. `meta["words"]` is what its wording was filled with. For the task `chat`, `meta["turns"]` lists the
    QA of all turns, the last being this one."""

    task: str
    kind: str
    question: str
    answer: str
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)


def box_text(box: Sequence[int]) -> str:
    """`[[080,540,400,760]]` from values in 0-999."""
    return "[[" + ",".join(f"{value:03d}" for value in box) + "]]"


def rounded_box(box: Sequence[int]) -> tuple[int, ...]:
    """Values of a box as answers give them: multiples of 10 in 0-990."""
    return tuple(min(990, (value + 5) // 10 * 10) for value in box)


def jittered_box(rng: random.Random, box: Sequence[int], *, most: int = 12) -> tuple[int, ...]:
    """A box as a user would draw it: every value off by at most `most` of 1000, inside 0-999."""
    return tuple(min(999, max(0, value + rng.randint(-most, most))) for value in box)


def listing(phrases: Sequence[str]) -> str:
    """A sentence: `A red circle, a blue square and a green triangle.`"""
    text = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    return text[0].upper() + text[1:] + "."


def caption(scene: Scene, rng: random.Random, *, canonical: bool = False) -> QA:
    """Names every object, in reading order (left to right by centre)."""
    return QA(
        "caption",
        "caption",
        _wording(rng, CAPTION_WORDINGS, canonical),
        listing([article(obj.name) for obj in scene.objects]),
        {"objects": _object_list(scene), "words": {}},
    )


def grounded_caption(scene: Scene, rng: random.Random, *, canonical: bool = False) -> QA:
    """Names every object with its box."""
    phrases = [f"{article(obj.name)} {box_text(rounded_box(scene.box_999(obj)))}" for obj in scene.objects]
    question = _wording(rng, GROUNDED_WORDINGS, canonical)
    meta = {"objects": _object_list(scene), "words": {}}
    return QA("grounded_caption", "grounded_caption", question, listing(phrases), meta)


def rec(scene: Scene, rng: random.Random, obj: ShapeObject, *, canonical: bool = False) -> QA:
    """Box of a described object: colour and form, or one of them where that is enough."""
    expressions = []
    if not canonical and rng.random() < 0.2:
        if _count(scene, color=obj.color) == 1:
            expressions += [f"the {obj.color} object", f"the {obj.color} shape"]
        if _count(scene, form=obj.form) == 1:
            expressions.append(f"the {obj.form}")
    expression = rng.choice(expressions) if expressions else f"the {obj.name}"
    box = scene.box_999(obj)
    question = _wording(rng, REC_WORDINGS, canonical).format(expr=expression)
    kind = "rec_partial" if expressions else "rec"
    meta = {"object": obj.name, "box": list(box), "expression": expression, "words": {"expr": expression}}
    return QA("rec", kind, question, box_text(rounded_box(box)), meta)


def reg(scene: Scene, rng: random.Random, obj: ShapeObject, *, canonical: bool = False) -> QA:
    """Description of a boxed object; the box in the question has arbitrary last digits."""
    box = jittered_box(rng, scene.box_999(obj))
    words = {"box": box_text(box)}
    question = _wording(rng, REG_WORDINGS, canonical).format(**words)
    meta = {"object": obj.name, "box": list(box), "words": words}
    return QA("reg", "reg", question, listing([article(obj.name)]), meta)


def vqa(
    scene: Scene,
    rng: random.Random,
    *,
    kind: str | None = None,
    weights: Sequence[float] = (1.0,) * len(VQA_KINDS),
    canonical: bool = False,
) -> QA | None:
    """A question with a one-word answer.

    Args:
        kind: one of `VQA_KINDS`, None = any that this picture allows.
        weights: how often each of `VQA_KINDS` is tried first, all above 0; for `kind` None.
        canonical: use the first wording only.

    Returns:
        The question, or None where `kind` cannot be asked about this picture.
    """
    # Weighted order without repetition: the largest u^(1/w) first (Efraimidis and Spirakis, 2006).
    keys = {name: rng.random() ** (1 / weight) for name, weight in zip(VQA_KINDS, weights, strict=True)}
    kinds = [kind] if kind else sorted(VQA_KINDS, key=lambda name: -keys[name])
    for name in kinds:
        found = _VQA_MAKERS[name](scene, rng)
        if found:
            words, answer = found
            question = _wording(rng, VQA_WORDINGS[name], canonical).format(**words)
            return QA("vqa", name, question, answer, {"words": words})
    return None


def digit(scene: Scene, rng: random.Random, obj: ShapeObject, *, canonical: bool = False) -> QA:
    """Which digit an object carries; `obj.digit` is not None."""
    words = {"name": obj.name}
    question = _wording(rng, VQA_WORDINGS["digit"], canonical).format(**words)
    return QA("vqa", "digit", question, str(obj.digit), {"words": words})


def chat(scene: Scene, rng: random.Random, *, turns: int = 3) -> QA:
    """Several turns about one picture; every question stands on its own."""
    picked: list[QA] = []
    while len(picked) < turns:
        qa = any_question(scene, rng)
        if all(qa.question != other.question for other in picked):
            picked.append(qa)
    last = picked[-1]
    return QA("chat", last.task, last.question, last.answer, {"turns": picked})


def any_question(scene: Scene, rng: random.Random) -> QA:
    """One question of a random task, the short-answer kind most often."""
    task = rng.choices(TASKS[:-1], (2, 5, 3, 3, 1))[0]
    if task == "vqa":
        qa = vqa(scene, rng)
        assert qa is not None, "counting can always be asked"
        return qa
    if task in ("rec", "reg"):
        return (rec if task == "rec" else reg)(scene, rng, rng.choice(scene.objects))
    return (caption if task == "caption" else grounded_caption)(scene, rng)


def reworded(qa: QA, wordings: Mapping[str, Sequence[str]], rng: random.Random) -> QA:
    """The same question in one of these wordings, by kind; `qa` is one question, not a conversation."""
    return dataclasses.replace(
        qa, question=rng.choice(wordings[qa.kind.removesuffix("_partial")]).format(**qa.meta["words"])
    )


def _wording(rng: random.Random, wordings: Sequence[str], canonical: bool) -> str:
    """Any wording, the first one most often."""
    return wordings[0] if canonical or rng.random() < 0.2 else rng.choice(wordings)


def _object_list(scene: Scene) -> list[dict[str, Any]]:
    return [{"name": obj.name, "box": list(scene.box_999(obj))} for obj in scene.objects]


def _count(scene: Scene, *, color: str | None = None, form: str | None = None) -> int:
    return sum((color in (None, obj.color)) and (form in (None, obj.form)) for obj in scene.objects)


Found = tuple[dict[str, str], str] | None


def _ask_color(scene: Scene, rng: random.Random) -> Found:
    unique = [obj for obj in scene.objects if _count(scene, form=obj.form) == 1]
    if not unique:
        return None
    obj = rng.choice(unique)
    return {"noun": obj.form}, obj.color


def _ask_form(scene: Scene, rng: random.Random) -> Found:
    unique = [obj for obj in scene.objects if _count(scene, color=obj.color) == 1]
    if not unique:
        return None
    obj = rng.choice(unique)
    return {"color": obj.color}, obj.form


def _ask_count(scene: Scene, rng: random.Random) -> Found:
    """Of all things that can be counted, first picks the number and then what to count, so that 1 is not most."""
    nouns: dict[int, list[str]] = {len(scene.objects): ["shapes", "objects"] * 2}
    absent = {0: [f"{color} shapes" for color in COLORS] + [f"{form}s" for form in FORMS]}
    for color in sorted({obj.color for obj in scene.objects}):
        nouns.setdefault(_count(scene, color=color), []).append(f"{color} {rng.choice(('shapes', 'objects'))}")
        absent[0].remove(f"{color} shapes")
    for form in sorted({obj.form for obj in scene.objects}):
        nouns.setdefault(_count(scene, form=form), []).append(f"{form}s")
        absent[0].remove(f"{form}s")
    if rng.random() < 0.15:
        nouns = absent
    number = rng.choice(sorted(nouns))
    return {"nouns": rng.choice(nouns[number])}, str(number)


def _ask_exist(scene: Scene, rng: random.Random) -> Found:
    """Half yes. Half of the no's take colour and form from two different objects where that is possible."""
    names = [obj.name for obj in scene.objects]
    if rng.random() < 0.5:
        return {"name": article(rng.choice(names))}, "yes"
    absent = [f"{color} {form}" for color in COLORS for form in FORMS if f"{color} {form}" not in names]
    crossed = {f"{a.color} {b.form}" for a in scene.objects for b in scene.objects} - set(names)
    partly = [n for n in absent if any(obj.color in n or obj.form in n for obj in scene.objects)]
    level = rng.random()
    pool = sorted(crossed) if crossed and level < 0.5 else partly if level < 0.8 else absent
    return {"name": article(rng.choice(pool))}, "no"


def _ask_size(scene: Scene, rng: random.Random) -> Found:
    obj = rng.choice(scene.objects)
    return {"name": obj.name}, obj.size


def _ask_place(axis: int) -> Callable[[Scene, random.Random], Found]:
    def ask(scene: Scene, rng: random.Random) -> Found:
        extent = (scene.width, scene.height)[axis]
        pairs = [
            (a, b)
            for a in scene.objects
            for b in scene.objects
            if abs(a.center[axis] - b.center[axis]) > MIN_SEPARATION * extent
        ]
        if not pairs:
            return None
        a, b = rng.choice(pairs)
        first = a.center[axis] < b.center[axis]
        return {"name": a.name, "other": b.name}, (("left", "right"), ("above", "below"))[axis][0 if first else 1]

    return ask


_VQA_MAKERS: dict[str, Callable[[Scene, random.Random], Found]] = {
    "color": _ask_color,
    "form": _ask_form,
    "count": _ask_count,
    "exist": _ask_exist,
    "size": _ask_size,
    "left_right": _ask_place(0),
    "above_below": _ask_place(1),
}
