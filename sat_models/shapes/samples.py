"""The lessons of a picture of the synthetic world: questions as tokens with their targets, and what lies on each patch.

Text is tokenised as inference does: the whole prompt in one piece, the answer on its own.
Legend: P patches of the picture (row by row).
"""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import NamedTuple, Protocol

import numpy as np

from sat_models.models.families import prompt_style
from sat_models.processing.layout import IGNORE
from sat_models.processing.prompts import build_prompt
from sat_models.shapes import questions
from sat_models.shapes.paraphrases import PARAPHRASES, framed
from sat_models.shapes.questions import QA, TASKS
from sat_models.shapes.scenes import COLORS, FORMS, SIZES, Scene, ShapeObject

BOX_WEIGHTS = ((6.0, 2.0, 0.1), (2.0, 0.5, 0.1), (1.0, 0.3, 0.1), (1.0, 0.3, 0.1))
"""Of the digits of x0, y0, x1, y1."""
MARK_WEIGHT = 0.1
TASK_ID = {task: index for index, task in enumerate(TASKS)}


class TextTokenizer(Protocol):
    """This module's view of a tokenizer."""

    bos_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added."""
        ...


@dataclasses.dataclass(frozen=True)
class TaskMix:
    """How many questions of each task a picture gets on average, and in which prompt versions.

    `rec` and `reg` count per object, `digit` per object that carries one, the others per picture. The fractional part
    is a probability. `paraphrased` is the share of single questions in wordings of `paraphrases`, `framed` that of
    those in its frames, whatever their wording. `chat` is one conversation of 2 to `most_turns` turns in the versions
    `chat` and `chat_old`. `base_version` and the like are
    relative weights; `vqa` prompts are made for the task vqa only. `vqa_kinds` weighs `VQA_KINDS`: questions that look
    two things up and compare them are learnt last and are asked most.
    """

    caption: float = 0.4
    grounded_caption: float = 0.4
    rec: float = 1.4
    reg: float = 1.4
    vqa: float = 9.0
    vqa_kinds: tuple[float, ...] = (1.0, 0.5, 1.5, 4.0, 1.5, 3.0, 3.0)
    digit: float = 3.0
    chat: float = 0.2
    paraphrased: float = 0.4
    framed: float = 0.25
    most_turns: int = 4
    chat_version: float = 0.55
    chat_old_version: float = 0.15
    base_version: float = 0.15
    vqa_version: float = 0.15


class Mention(NamedTuple):
    """The meaning of the token at `index`: classes and box as in `dense_targets`; all 0 for a thing not there."""

    index: int
    classes: tuple[int, int, int, int]
    box: tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Segment:
    """Tokens of one question or conversation; `labels[i]` is the target after reading `ids[: i + 1]`.

    `weights[i]` says how much that target counts, `mentions` what its names and boxes mean.
    """

    ids: list[int]
    labels: list[int]
    task_id: int
    weights: list[float]
    mentions: tuple[Mention, ...] = ()


def sample_questions(scene: Scene, rng: random.Random, mix: TaskMix) -> list[tuple[QA, str]]:
    """All questions of one picture with the prompt version of each, in random order."""
    picked: list[QA] = [questions.caption(scene, rng) for _ in range(_times(rng, mix.caption))]
    picked += [questions.grounded_caption(scene, rng) for _ in range(_times(rng, mix.grounded_caption))]
    for obj in scene.objects:
        picked += [questions.rec(scene, rng, obj) for _ in range(_times(rng, mix.rec))]
        picked += [questions.reg(scene, rng, obj) for _ in range(_times(rng, mix.reg))]
        if obj.digit is not None:
            picked += [questions.digit(scene, rng, obj) for _ in range(_times(rng, mix.digit))]
    picked += [qa for _ in range(_times(rng, mix.vqa)) if (qa := questions.vqa(scene, rng, weights=mix.vqa_kinds))]
    for _ in range(_times(rng, mix.chat)):
        picked.append(questions.chat(scene, rng, turns=rng.randint(2, mix.most_turns)))
    picked = [
        questions.reworded(qa, PARAPHRASES, rng) if qa.task != "chat" and rng.random() < mix.paraphrased else qa
        for qa in picked
    ]
    picked = [
        dataclasses.replace(qa, question=framed(qa.question, rng))
        if qa.task != "chat" and rng.random() < mix.framed
        else qa
        for qa in picked
    ]
    rng.shuffle(picked)
    return [(qa, _version(rng, qa.task, mix)) for qa in picked]


def encode_qa(tokenizer: TextTokenizer, qa: QA, version: str) -> Segment:
    """Tokens and targets of one question.

    A conversation is the history format of inference with every answer trained: earlier answers where they stand in
    the prompt, with EOS as the target of their last token although the input goes on with the next turn.
    """
    turns: list[QA] = qa.meta["turns"] if qa.task == "chat" else [qa]
    history = tuple((turn.question, turn.answer) for turn in turns[:-1])
    style = prompt_style(version)
    prompt = _encode(tokenizer, build_prompt(style, qa.question, history))
    answer = _encode(tokenizer, qa.answer)
    ids = [*prompt, *answer]
    labels = [IGNORE] * (len(prompt) - 1) + [*answer, tokenizer.eos_id]
    for index, (question, said) in enumerate(history):
        before = build_prompt(style, question, history[:index]).rstrip(" ")
        start, after = len(_encode(tokenizer, before)), _encode(tokenizer, f"{before} {said}")
        if tuple(ids[: len(after)]) != after or not start < len(after):
            raise ValueError(f"the tokenizer splits the answer '{said}' in a history otherwise than at its borders")
        labels[start - 1 : len(after)] = [*ids[start : len(after)], tokenizer.eos_id]
    return Segment(ids, labels, TASK_ID[qa.task], target_weights(labels, _digit_ids(tokenizer)))


def target_weights(labels: list[int], digits: frozenset[int]) -> list[float]:
    """How much each target counts: 1, but in a box `BOX_WEIGHTS`, and little for the marks inside it.

    Which object is meant is decided by a box's first digits, and the later ones follow from them; the last digit of
    each number and the marks are always the same. With equal weights the noise of the small digits drowns the decision.
    """
    weights, number = [1.0] * len(labels), 0
    at = 0
    while at < len(labels):
        run = 0
        while at + run < len(labels) and labels[at + run] in digits:
            run += 1
        if run == 3:
            weights[at : at + 3] = BOX_WEIGHTS[number % 4]
            weights[at - 1] = MARK_WEIGHT
            number += 1
        at += max(run, 1)
    return weights


def object_classes(obj: ShapeObject) -> tuple[int, int, int, int]:
    """Colour, form, size and digit as classes from 1; digit 0 = it carries none."""
    digit = 0 if obj.digit is None else obj.digit + 1
    return COLORS.index(obj.color) + 1, FORMS.index(obj.form) + 1, SIZES.index(obj.size) + 1, digit


def dense_targets(scene: Scene, grid: int) -> tuple[np.ndarray, np.ndarray]:
    """The object on each patch of a `grid` x `grid` picture.

    A patch belongs to the object that covers its centre or at least half of it; an object that has no patch by this
    rule gets the one that it covers most.

    Returns:
        Colour, form, size and digit as classes [P, 4] (0 none) and the object's box [P, 4] in 0-999.
    """
    fine = 6  # samples per patch and direction
    ticks = (np.arange(grid * fine) + 0.5) / (grid * fine)
    classes = np.zeros((grid, grid, 4), np.int64)
    box = np.zeros((grid, grid, 4), np.int64)
    for obj in scene.objects:
        inside = _inside(scene, obj, ticks)
        share = inside.reshape(grid, fine, grid, fine).mean((1, 3))
        middle = fine // 2
        center = inside.reshape(grid, fine, grid, fine)[:, middle - 1 : middle + 1, :, middle - 1 : middle + 1]
        own = (share >= 0.5) | center.all((1, 3))
        if not own.any():
            own = share == share.max()
        classes[own] = object_classes(obj)
        box[own] = scene.box_999(obj)
    return classes.reshape(-1, 4), box.reshape(-1, 4)


def _inside(scene: Scene, obj: ShapeObject, ticks: np.ndarray) -> np.ndarray:
    """True if the points (ticks x ticks, relative to the canvas) lie inside the object: [y, x] bool."""
    x0, y0, x1, y1 = obj.box
    u = ((ticks * scene.width - x0) / (x1 - x0))[None, :]  # 0..1 across the box
    v = ((ticks * scene.height - y0) / (y1 - y0))[:, None]
    if obj.form == "circle":
        return (u - 0.5) ** 2 + (v - 0.5) ** 2 <= 0.25
    if obj.form == "square":
        return (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
    return (v >= 0) & (v <= 1) & (u >= obj.apex * (1 - v)) & (u <= 1 - (1 - obj.apex) * (1 - v))


@functools.lru_cache(maxsize=50_000)
def _encode(tokenizer: TextTokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text))


@functools.lru_cache(maxsize=8)
def _digit_ids(tokenizer: TextTokenizer) -> frozenset[int]:
    return frozenset(tokenizer.encode(f"0{digit}")[-1] for digit in range(10))


def _times(rng: random.Random, mean: float) -> int:
    whole = int(mean)
    return whole + (rng.random() < mean - whole)


def _version(rng: random.Random, task: str, mix: TaskMix) -> str:
    weights = {"chat": mix.chat_version, "chat_old": mix.chat_old_version}
    if task != "chat":
        weights["base"] = mix.base_version
    if task == "vqa":
        weights["vqa"] = mix.vqa_version
    return rng.choices(list(weights), list(weights.values()))[0]
