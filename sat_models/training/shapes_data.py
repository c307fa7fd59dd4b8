"""Packed training batches of the synthetic world.

One row = one picture followed by many independent questions. Each question sees BOS, BOI, the image tokens, EOI and
itself, and its positions start at 4, so that it is exactly what inference on that question alone sees, while the
picture is computed once. Text is tokenised as inference does: the whole prompt in one piece, the answer on its own.

Legend: B rows, S tokens, P patches of the picture (row by row).
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from ..processing.image import image_to_tensor
from ..processing.layout import IGNORE
from ..processing.prompts import build_prompt
from . import shapes_questions as questions
from .shapes_questions import QA, TASKS
from .shapes_world import COLORS, FORMS, SIZES, Scene, ShapeObject, draw, sample_scene

TASK_ID = {task: index for index, task in enumerate(TASKS)}


class TextTokenizer(Protocol):
    """What this module needs of a tokenizer."""

    bos_id: int
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added."""
        ...


@dataclasses.dataclass(frozen=True)
class TaskMix:
    """How many questions of each task a picture gets on average, and in which prompt versions.

    `rec` and `reg` count per object, the others per picture. The fractional part is a probability. `chat` is one
    conversation of 2 to `most_turns` turns in the versions `chat` and `chat_old`. `base_version` and the like are
    relative weights; `vqa` prompts are made for the task vqa only.
    """

    caption: float = 0.8
    grounded_caption: float = 1.0
    rec: float = 1.3
    reg: float = 1.0
    vqa: float = 4.5
    chat: float = 0.35
    most_turns: int = 4
    chat_version: float = 0.55
    chat_old_version: float = 0.15
    base_version: float = 0.15
    vqa_version: float = 0.15


@dataclasses.dataclass
class PackedBatch:
    """Training tensors.

    `labels[b, t]` is the token that `logits[b, t]` should predict: already shifted, not to be shifted again by the
    loss. EOS is the target after each answer and never an input.
    """

    input_ids: torch.Tensor  # [B, S] int64; 0 at BOI, image, EOI and padding
    position_ids: torch.Tensor  # [B, S] int64
    attention_mask: torch.Tensor  # [B, 1, S, S] bool, True = row may look at column
    labels: torch.Tensor  # [B, S] int64, -100 = no target
    vision_expert_mask: torch.Tensor  # [B, S] int64, 1 at BOI and image
    image_embed_mask: torch.Tensor  # [B, S] int64, 1 at BOI, image and EOI
    vision_image: torch.Tensor  # [B, 3, H, W] float32, CLIP-normalised
    task_ids: torch.Tensor  # [B, S] int64 into TASKS, -1 where there is no target
    patch_color: torch.Tensor  # [B, P] int64: 0 none, 1.. into COLORS
    patch_form: torch.Tensor  # [B, P] int64: 0 none, 1.. into FORMS
    patch_size: torch.Tensor  # [B, P] int64: 0 none, 1 small, 2 large
    patch_box: torch.Tensor  # [B, P, 4] int64 in 0-999, 0 where there is no object

    def model_inputs(self) -> dict[str, torch.Tensor]:
        """The arguments of the model's forward."""
        names = "input_ids position_ids attention_mask vision_expert_mask image_embed_mask vision_image".split()
        return {name: getattr(self, name) for name in names}

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        return PackedBatch(**{f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self)})


@dataclasses.dataclass(frozen=True)
class Segment:
    """Tokens of one question or conversation; `labels[i]` is the target after reading `ids[: i + 1]`."""

    ids: list[int]
    labels: list[int]
    task_id: int


def make_batch(
    tokenizer: TextTokenizer,
    *,
    seed: int,
    step: int,
    batch_size: int,
    max_objects: int = 3,
    min_objects: int = 1,
    mix: TaskMix | None = None,
    image_size: int = 112,
    patch: int = 14,
) -> PackedBatch:
    """The batch of one step; a function of its arguments only, so that a resumed run sees the same data.

    Args:
        tokenizer: of the model.
        seed: of the run.
        step: number of the batch in the run.
        batch_size: pictures.
        max_objects: most objects in a picture.
        min_objects: fewest objects in a picture.
        mix: how many questions of which kind.
        image_size: side of the model's picture in pixels.
        patch: side of a patch in pixels.
    """
    mix = mix or TaskMix()
    rows, pixels, dense = [], [], []
    for row in range(batch_size):
        rng = random.Random(f"train/{seed}/{step}/{row}")
        scene = sample_scene(rng, max_objects=max_objects, min_objects=min_objects)
        rows.append([encode_qa(tokenizer, qa, version) for qa, version in sample_questions(scene, rng, mix)])
        pixels.append(image_pixels(scene, image_size))
        dense.append(dense_targets(scene, image_size // patch))
    tensors = pack(rows, bos_id=tokenizer.bos_id, image_length=(image_size // patch) ** 2)
    names = ("patch_color", "patch_form", "patch_size", "patch_box")
    for name, values in zip(names, zip(*dense, strict=True), strict=True):
        tensors[name] = torch.from_numpy(np.stack(values))
    return PackedBatch(vision_image=torch.from_numpy(np.stack(pixels)), **tensors)


def sample_questions(scene: Scene, rng: random.Random, mix: TaskMix) -> list[tuple[QA, str]]:
    """All questions of one picture with the prompt version of each, in random order."""
    picked: list[QA] = [questions.caption(scene, rng) for _ in range(_times(rng, mix.caption))]
    picked += [questions.grounded_caption(scene, rng) for _ in range(_times(rng, mix.grounded_caption))]
    for obj in scene.objects:
        picked += [questions.rec(scene, rng, obj) for _ in range(_times(rng, mix.rec))]
        picked += [questions.reg(scene, rng, obj) for _ in range(_times(rng, mix.reg))]
    picked += [qa for _ in range(_times(rng, mix.vqa)) if (qa := questions.vqa(scene, rng))]
    for _ in range(_times(rng, mix.chat)):
        picked.append(questions.chat(scene, rng, turns=rng.randint(2, mix.most_turns)))
    rng.shuffle(picked)
    return [(qa, _version(rng, qa.task, mix)) for qa in picked]


def encode_qa(tokenizer: TextTokenizer, qa: QA, version: str) -> Segment:
    """Tokens and targets of one question.

    A conversation is the history format of inference with every answer trained: earlier answers where they stand in
    the prompt, with EOS as the target of their last token although the input goes on with the next turn.
    """
    turns: list[QA] = qa.meta["turns"] if qa.task == "chat" else [qa]
    history = tuple((turn.question, turn.answer) for turn in turns[:-1])
    prompt = _encode(tokenizer, build_prompt(version, qa.question, history))
    answer = _encode(tokenizer, qa.answer)
    ids = [*prompt, *answer]
    labels = [IGNORE] * (len(prompt) - 1) + [*answer, tokenizer.eos_id]
    for index, (question, said) in enumerate(history):
        before = build_prompt(version, question, history[:index]).rstrip(" ")
        start, after = len(_encode(tokenizer, before)), _encode(tokenizer, f"{before} {said}")
        if tuple(ids[: len(after)]) != after or not start < len(after):
            raise ValueError(f"the tokenizer splits the answer '{said}' in a history otherwise than at its borders")
        labels[start - 1 : len(after)] = [*ids[start : len(after)], tokenizer.eos_id]
    return Segment(ids, labels, TASK_ID[qa.task])


def pack(rows: Sequence[Sequence[Segment]], *, bos_id: int, image_length: int) -> dict[str, torch.Tensor]:
    """Lays the segments of each row out after its picture and pads to the longest row.

    Padding may look at itself and at the picture, which keeps its attention finite; nothing looks at padding.
    """
    head = image_length + 3
    length = head + max(sum(len(segment.ids) for segment in row) for row in rows)
    shape = (len(rows), length)
    input_ids, position_ids = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    labels, task_ids = np.full(shape, IGNORE, np.int64), np.full(shape, -1, np.int64)
    segment_ids = np.full(shape, -1, np.int64)
    segment_ids[:, :head] = 0
    input_ids[:, 0] = bos_id
    position_ids[:, :head] = [0, 1, *[2] * image_length, 3]
    for b, row in enumerate(rows):
        t = head
        for number, segment in enumerate(row, start=1):
            end = t + len(segment.ids)
            input_ids[b, t:end], labels[b, t:end] = segment.ids, segment.labels
            position_ids[b, t:end] = np.arange(4, 4 + end - t)
            segment_ids[b, t:end] = number
            task_ids[b, t:end] = segment.task_id
            t = end
    task_ids[labels == IGNORE] = -1
    ids = torch.from_numpy(segment_ids)
    same = ids[:, :, None] == ids[:, None, :]
    look = torch.tril(torch.ones(length, length, dtype=torch.bool)) & (same | (ids == 0)[:, None, :])
    place = torch.arange(length).expand(shape)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(position_ids),
        "attention_mask": look[:, None],
        "labels": torch.from_numpy(labels),
        "task_ids": torch.from_numpy(task_ids),
        "vision_expert_mask": ((place >= 1) & (place < head - 1)).long(),
        "image_embed_mask": ((place >= 1) & (place < head)).long(),
    }


def image_pixels(scene: Scene, image_size: int) -> np.ndarray:
    """The picture as the image processor gives it: [3, image_size, image_size] float32, CLIP-normalised."""
    return image_to_tensor(draw(scene), image_size).numpy()


def dense_targets(scene: Scene, grid: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What lies on each patch of a `grid` x `grid` picture.

    A patch belongs to the object that covers its centre or at least half of it; an object that has no patch by this
    rule gets the one that it covers most.

    Returns:
        Colour, form and size classes [P] (0 none) and the object's box [P, 4] in 0-999.
    """
    fine = 6  # samples per patch and direction
    ticks = (np.arange(grid * fine) + 0.5) / (grid * fine)
    classes = np.zeros((3, grid, grid), np.int64)
    box = np.zeros((grid, grid, 4), np.int64)
    for obj in scene.objects:
        inside = _inside(scene, obj, ticks)
        share = inside.reshape(grid, fine, grid, fine).mean((1, 3))
        middle = fine // 2
        center = inside.reshape(grid, fine, grid, fine)[:, middle - 1 : middle + 1, :, middle - 1 : middle + 1]
        own = (share >= 0.5) | center.all((1, 3))
        if not own.any():
            own = share == share.max()
        classes[:, own] = [[COLORS.index(obj.color) + 1], [FORMS.index(obj.form) + 1], [SIZES.index(obj.size) + 1]]
        box[own] = scene.box_999(obj)
    return classes[0].reshape(-1), classes[1].reshape(-1), classes[2].reshape(-1), box.reshape(-1, 4)


def _inside(scene: Scene, obj: ShapeObject, ticks: np.ndarray) -> np.ndarray:
    """Whether the points (ticks x ticks, relative to the canvas) lie inside the object: [y, x] bool."""
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
