"""The recipe of the bundled painter `cogview-tiny`, from random weights.

Stage "codec": images as codes and back. Stage "codes": the transformer, told a prompt, writes plan and codes of an
image that is what the prompt asks for. Each stage warms up and ends with a falling rate; the second stays at its rate
until the last `decay_steps` (as in `recipe`). Batches are functions of (seed, step).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sat_models.models.cogview_tiny.config import CogViewTinyConfig
from sat_models.processing.plans import PlannedObject, plan_ids, read_prompt
from sat_models.shapes.drawing import draw
from sat_models.shapes.prompts import BACKGROUNDS, CANVAS, GRID, KINDS, MOST, sample_scene_of, sample_wish, vocabulary
from sat_models.shapes.scenes import COLORS, FORMS, Scene


@dataclass(frozen=True, kw_only=True)
class PainterRecipe:
    """The schedule of the recipe. Steps count from 0 over both stages."""

    seed: int = 0
    codec_steps: int = 1500
    steps: int = 8500
    decay_steps: int = 4000
    warmup_steps: int = 30
    batch: int = 32
    learning_rate: float = 1.5e-3  # of vectors and embeddings (AdamW)
    muon_rate: float = 10.0  # matrices (Muon) learn at this multiple of it
    final_learning_rate: float = 3e-5
    muon_weight_decay: float = 0.1
    plan_weight: float = 4.0  # of a token of the plan; a code counts 1
    kinds: tuple[float, ...] = (1.0, 1.5, 2.0, 2.0, 1.5)
    """How often each kind of prompt (`prompts.KINDS`) is drawn."""
    bf16: bool = False  # products in bf16; weights and optimizer stay in fp32

    def stage(self, step: int) -> str:
        """The stage of a step: codec or codes."""
        return "codec" if step < self.codec_steps else "codes"

    def learning_rate_at(self, step: int) -> float:
        """Of the stage: warm-up, constant, linear decay (the codec's over three fifths of its steps)."""
        first, end, decay = self.codec_steps, self.steps, self.decay_steps
        if self.stage(step) == "codec":
            first, end, decay = 0, self.codec_steps, self.codec_steps * 3 // 5
        rate = self.learning_rate * min(1.0, (step - first + 1) / self.warmup_steps)
        share = min(1.0, (end - step) / max(1, decay))
        return self.final_learning_rate + (rate - self.final_learning_rate) * share

    def rate_of(self, group: Mapping[str, Any], step: int) -> float:
        """The learning rate of a group of parameters; 0 in the other stage, where Muon would go on by its momentum."""
        if group.get("stage", self.stage(step)) != self.stage(step):
            return 0.0
        return self.learning_rate_at(step) * (self.muon_rate if group.get("muon") else 1.0)


class PainterBatch(NamedTuple):
    """B images with their prompts and plans.

    Attributes:
        pixels: [B, 3, side, side] in -1 … 1.
        told: [B, S]: prompt, `<start_of_image>`, plan.
    """

    pixels: Tensor
    told: Tensor

    def to(self, device: torch.device) -> PainterBatch:
        """On a device."""
        return PainterBatch(self.pixels.to(device), self.told.to(device))


def painter_config(**sizes: Any) -> CogViewTinyConfig:
    """The config of a painter of the world; `sizes` are those of the transformer and the codec."""
    grid, patch = sizes.get("grid", 12), CANVAS // sizes.get("grid", 12)
    named = {
        "words": vocabulary(), "backgrounds": tuple(BACKGROUNDS), "colors": COLORS, "forms": FORMS,
        "steps_of_place": CANVAS // GRID, "most_objects": MOST, "patch": patch, "levels": (8, 5, 5, 5), **sizes,
    }  # fmt: skip
    text, codes = named.setdefault("image_start", 24), int(np.prod(named["levels"]))
    plan_words = sum(len(named[name]) for name in ("backgrounds", "colors", "forms")) + 1 + named["steps_of_place"]
    words = codes + plan_words + 2 + len(named["words"])
    return CogViewTinyConfig(
        image_codes=codes + plan_words,
        vocab_size=words + words % 2,  # two processes may share it
        max_sequence_length=text + 1 + 1 + 5 * MOST + grid**2,
        **named,
    )


def batch_of_step(recipe: PainterRecipe, config: CogViewTinyConfig, step: int) -> PainterBatch:
    """The data of one step; the codec learns from three objects at a time."""
    rng = random.Random(f"train/painter/{recipe.seed}/{step}")
    codec = recipe.stage(step) == "codec"
    kinds = ["three"] * recipe.batch if codec else rng.choices(KINDS, recipe.kinds, k=recipe.batch)
    wishes = [sample_wish(rng, kind=kind) for kind in kinds]
    scenes = [sample_scene_of(wish, rng) for wish in wishes]
    told = [
        [*read_prompt(config, wish.prompt).ids, config.start, *plan_of(config, scene)]
        for wish, scene in zip(wishes, scenes, strict=True)
    ]
    return PainterBatch(pixels_of(scenes), torch.tensor(told))


def pixels_of(scenes: list[Scene]) -> Tensor:
    """[B, 3, side, side] in -1 … 1."""
    drawn = np.stack([np.asarray(draw(scene)) for scene in scenes])
    return torch.from_numpy(drawn).movedim(-1, 1).float() / 127.5 - 1


def plan_of(config: CogViewTinyConfig, scene: Scene) -> list[int]:
    """The plan of a scene of `prompts`, its objects in the prompt's order."""
    ground = next(name for name, rgb in BACKGROUNDS.items() if rgb == scene.background.colors[0])
    objects = [PlannedObject(thing.color, thing.form, *thing.box[:3]) for thing in scene.objects]
    return plan_ids(config, ground, objects)
