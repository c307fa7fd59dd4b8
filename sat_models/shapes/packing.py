"""Training batches of the synthetic world: one picture and many independent questions in every row.

The picture stands first, then R lanes of L tokens; questions are fitted into lanes, several to a lane. Every question
sees BOS, BOI, the image, EOI and itself, and its positions start at 4, so it is exactly what inference on that question
alone sees, while the picture is computed once. Many questions per picture is the cheapest gain in supervision there is.

Legend: B rows, P = image tokens + 3, R lanes, L lane length, S = P + R·L, C patches of the picture.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sat_models.processing.layout import IGNORE
from sat_models.processing.pixels import image_to_tensor
from sat_models.shapes.drawing import draw
from sat_models.shapes.mentions import find_mentions
from sat_models.shapes.samples import Segment, TaskMix, TextTokenizer, dense_targets, encode_qa, sample_questions
from sat_models.shapes.scenes import sample_scene

INPUTS = ("input_ids", "position_ids", "lane_mask", "vision_expert_mask", "image_embed_mask")
"""Tensors of a batch that the model's forward takes, beside the pixels."""


@dataclass(frozen=True)
class LaneShape:
    """How much text a row holds: `lanes` × `length` tokens. Questions that do not fit are left out."""

    lanes: int = 4
    length: int = 128


@dataclass
class LaneBatch:
    """`labels[b, t]` is the token that `logits[b, t]` should predict (already shifted), -100 = none."""

    input_ids: torch.Tensor  # [B, S] int64
    position_ids: torch.Tensor  # [B, S] int64
    lane_mask: torch.Tensor  # [B, R, L, P + L] bool, True = may look
    labels: torch.Tensor  # [B, S] int64
    weights: torch.Tensor  # [B, S] float32, how much each target counts
    task_ids: torch.Tensor  # [B, S] int64 into TASKS, -1 where there is no target
    vision_expert_mask: torch.Tensor  # [B, S] int64
    image_embed_mask: torch.Tensor  # [B, S] int64
    vision_image: torch.Tensor  # [B, 3, H, W] float32, CLIP-normalised
    mention_classes: torch.Tensor  # [B, S, 4] int64: as patch_classes, of what a token means, -1 = it means no object
    mention_box: torch.Tensor  # [B, S, 4] int64 in 0-999
    patch_classes: torch.Tensor  # [B, C, 4] int64: colour, form, size, digit of what lies on each patch, 0 = nothing
    patch_box: torch.Tensor  # [B, C, 4] int64 in 0-999

    def model_inputs(self) -> dict[str, torch.Tensor]:
        """Arguments of the model's forward (with the "packed" mixin)."""
        return {name: getattr(self, name) for name in (*INPUTS, "vision_image")}

    def to(self, device: torch.device | str) -> LaneBatch:
        """The same batch on another device."""
        return LaneBatch(**{f.name: getattr(self, f.name).to(device) for f in dataclasses.fields(self)})


def make_lane_batch(
    tokenizer: TextTokenizer,
    *,
    seed: int,
    step: int,
    batch_size: int,
    object_weights: Sequence[float],
    mix: TaskMix,
    shape: LaneShape = LaneShape(),
    digit_share: float = 0.0,
    image_size: int = 112,
    patch: int = 14,
) -> LaneBatch:
    """The batch of one step; a function of its arguments alone, so that a resumed run sees the same data.

    `object_weights` says how often a picture holds one, two, … objects, `digit_share` how many large ones carry a
    digit.
    """
    rows, pixels, classes, boxes = [], [], [], []
    for row in range(batch_size):
        rng = random.Random(f"train/{seed}/{step}/{row}")
        (count,) = rng.choices(range(1, len(object_weights) + 1), object_weights)
        scene = sample_scene(rng, min_objects=count, max_objects=count, digit_share=digit_share)
        segments = [encode_qa(tokenizer, qa, version) for qa, version in sample_questions(scene, rng, mix)]
        rows.append([dataclasses.replace(s, mentions=find_mentions(tokenizer, s.ids, scene)) for s in segments])
        pixels.append(image_to_tensor(draw(scene), image_size))
        on_patches, box = dense_targets(scene, image_size // patch)
        classes.append(on_patches)
        boxes.append(box)
    return LaneBatch(
        vision_image=torch.stack(pixels),
        patch_classes=torch.from_numpy(np.stack(classes)),
        patch_box=torch.from_numpy(np.stack(boxes)),
        **pack_lanes(rows, bos_id=tokenizer.bos_id, image_length=(image_size // patch) ** 2, shape=shape),
    )


def fit_into_lanes(segments: list[Segment], shape: LaneShape) -> list[list[Segment]]:
    """First-fit, longest first; what does not fit is left out."""
    lanes: list[list[Segment]] = [[] for _ in range(shape.lanes)]
    free = [shape.length] * shape.lanes
    for segment in sorted(segments, key=lambda s: -len(s.ids)):
        for lane in range(shape.lanes):
            if len(segment.ids) <= free[lane]:
                lanes[lane].append(segment)
                free[lane] -= len(segment.ids)
                break
    return lanes


def pack_lanes(
    rows: list[list[Segment]], *, bos_id: int, image_length: int, shape: LaneShape
) -> dict[str, torch.Tensor]:
    """Tensors of a batch from the questions of each row. Padding sees the prefix and itself; nothing sees padding."""
    prefix = image_length + 3
    size = (len(rows), shape.lanes, shape.length)
    input_ids, position_ids = np.zeros(size, np.int64), np.zeros(size, np.int64)
    labels, task_ids = np.full(size, IGNORE, np.int64), np.full(size, -1, np.int64)
    weights = np.zeros(size, np.float32)
    mention_classes, mention_box = np.full((*size, 4), -1, np.int64), np.zeros((*size, 4), np.int64)
    owner = np.broadcast_to(-1 - np.arange(shape.length), size).copy()  # padding tokens own themselves
    for b, row in enumerate(rows):
        for r, lane in enumerate(fit_into_lanes(row, shape)):
            t = 0
            for number, segment in enumerate(lane):
                end = t + len(segment.ids)
                input_ids[b, r, t:end], labels[b, r, t:end] = segment.ids, segment.labels
                weights[b, r, t:end] = segment.weights
                position_ids[b, r, t:end] = np.arange(4, 4 + end - t)
                owner[b, r, t:end], task_ids[b, r, t:end] = number, segment.task_id
                for mention in segment.mentions:
                    mention_classes[b, r, t + mention.index] = mention.classes
                    mention_box[b, r, t + mention.index] = mention.box
                t = end
    task_ids[labels == IGNORE] = -1
    own = np.tril(owner[..., :, None] == owner[..., None, :])
    lane_mask = np.concatenate((np.ones((*size, prefix), bool), own), axis=-1)

    def row_of(head: list[int], lanes: np.ndarray) -> torch.Tensor:
        start = np.broadcast_to(np.array(head, lanes.dtype), (len(rows), prefix))
        return torch.from_numpy(np.concatenate((start, lanes.reshape(len(rows), -1)), axis=1))

    def fours(value: int, lanes: np.ndarray) -> torch.Tensor:
        start = np.full((len(rows), prefix, 4), value, np.int64)
        return torch.from_numpy(np.concatenate((start, lanes.reshape(len(rows), -1, 4)), axis=1))

    nothing = np.zeros(size, np.int64)
    return {
        "input_ids": row_of([bos_id, *[0] * (prefix - 1)], input_ids),
        "position_ids": row_of([0, 1, *[2] * image_length, 3], position_ids),
        "labels": row_of([IGNORE] * prefix, labels),
        "weights": row_of([0] * prefix, weights),
        "task_ids": row_of([-1] * prefix, task_ids),
        "vision_expert_mask": row_of([0, *[1] * (image_length + 1), 0], nothing),
        "image_embed_mask": row_of([0, *[1] * (image_length + 2)], nothing),
        "mention_classes": fours(-1, mention_classes),
        "mention_box": fours(0, mention_box),
        "lane_mask": torch.from_numpy(lane_mask),
    }
