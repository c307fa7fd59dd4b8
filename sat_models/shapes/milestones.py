"""How far a training run is: questions about held-out pictures with several objects, answered in one forward.

Teacher forcing: each token of an answer is predicted with the true ones before it, so a figure is a little above that
of `scoring`, at a hundredth of its cost.
"""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import torch

from sat_models.processing.pixels import image_to_tensor
from sat_models.shapes import questions
from sat_models.shapes.drawing import draw
from sat_models.shapes.packing import INPUTS, LaneShape, fit_into_lanes, pack_lanes
from sat_models.shapes.questions import QA, VQA_KINDS
from sat_models.shapes.samples import Segment, TextTokenizer, encode_qa
from sat_models.shapes.scenes import Scene, sample_scene

LANES = LaneShape(lanes=6, length=160)
DECISIVE = 1.0
"""Targets that weigh less (marks and later digits of a box) may be wrong."""


@torch.no_grad()
def share_right(
    model: Any, tokenizer: TextTokenizer, *, count: int = 48, batch: int = 16, seed: int = 0
) -> dict[str, float]:
    """By kind of question: the share of answers with every decisive token right, on pictures of two and three objects.

    Args:
        model: takes packed lanes (the mixin "packed"); left in the mode that it was in.
        count: pictures; about as many questions of each kind.
        batch: pictures at a time.
        seed: of the pictures.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    device = next(model.parameters()).device
    for start in range(0, count, batch):
        asked, pixels = zip(*(_asked(seed, n) for n in range(start, min(start + batch, count))), strict=True)
        rows = [[encode_qa(tokenizer, qa, "chat") for qa in row] for row in asked]
        kinds = {id(s): qa.kind for row, qas in zip(rows, asked, strict=True) for s, qa in zip(row, qas, strict=True)}
        size = model.config.eva_args.image_size[0]
        packed = pack_lanes(rows, bos_id=tokenizer.bos_id, image_length=model.config.image_length, shape=LANES)
        inputs = {name: packed[name].to(device) for name in INPUTS}
        images = torch.stack([image_to_tensor(image, size) for image in pixels]).to(device)
        said = model(**inputs, vision_image=images)[0].argmax(-1)[:, model.config.image_length + 3 :].cpu()
        for row, answers in zip(rows, said.unflatten(1, (LANES.lanes, LANES.length)), strict=True):
            for lane, tokens in zip(fit_into_lanes(row, LANES), answers.tolist(), strict=True):
                at = 0
                for segment in lane:
                    right[kinds[id(segment)]].append(_is_right(segment, tokens[at : at + len(segment.ids)]))
                    at += len(segment.ids)
    return {kind: round(sum(answers) / len(answers), 3) for kind, answers in sorted(right.items())}


def _is_right(segment: Segment, said: list[int]) -> bool:
    decisive = [at for at, label in enumerate(segment.labels) if label >= 0 and segment.weights[at] >= DECISIVE]
    return all(said[at] == segment.labels[at] for at in decisive)


def _asked(seed: int, number: int) -> tuple[list[QA], Any]:
    """Questions and the picture of this number."""
    rng = random.Random(f"milestone/{seed}/{number}")
    count = rng.choice((2, 3))
    scene: Scene = sample_scene(rng, min_objects=count, max_objects=count)
    thing = rng.choice(scene.objects)
    asked = [questions.vqa(scene, rng, kind=kind, canonical=True) for kind in VQA_KINDS]
    asked += [
        questions.caption(scene, rng, canonical=True),
        questions.rec(scene, rng, thing, canonical=True),
        questions.reg(scene, rng, thing, canonical=True),
    ]
    return [qa for qa in asked if qa], draw(scene)
