"""The training recipe of the embedded model `cogvlm-tiny`, from random weights: what is asked when, at which rate.

Stage "tower": the vision tower alone, told densely what lies on each patch (colour, form, size, box). A released tower
comes pre-trained; this is how a tiny one gets there in minutes. Stage "full": everything, many questions about each
picture, with the dense task kept at a low weight. It begins with lookups, short questions about two objects; boxes and
captions follow. All along the language model is told at each name what it means (`mentions`).

The learning rate warms up, stays, and falls in the last `decay_steps` (warmup-stable-decay, arXiv 2404.06395), so a run
can be lengthened without repeating it. Batches are functions of (seed, step): a resumed run sees the same data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sat_models.shapes.packing import LaneBatch, LaneShape, make_lane_batch
from sat_models.shapes.samples import TaskMix, TextTokenizer

LOOKUPS = TaskMix(
    caption=0, grounded_caption=0, rec=0.3, reg=0.5, vqa=16, vqa_kinds=(3, 3, 1, 2, 1.5, 3, 3), chat=0,
    chat_version=0.2, chat_old_version=0.1, base_version=0.35, vqa_version=0.35,
)  # fmt: skip
"""Mostly questions of one word, in short prompts: what is looked up by colour, by form and by place, equally often."""


@dataclass(frozen=True, kw_only=True)
class TinyRecipe:
    """The schedule of the recipe. Steps count from 0 over both stages."""

    seed: int = 0
    tower_steps: int = 500
    steps: int = 5000
    decay_steps: int = 3000
    warmup_steps: int = 30
    tower_batch: int = 48
    batch: int = 16
    learning_rate: float = 1.5e-3  # of vectors and embeddings (AdamW)
    muon_rate: float = 10.0  # matrices (Muon) learn at this multiple of it
    final_learning_rate: float = 5e-5
    tower_rate_in_full: float = 0.3  # scale of the tower's learning rate in the full stage
    muon_weight_decay: float = 0.2  # bounds the matrices, so that attention stays soft enough to learn
    dense_weight: float = 0.5
    mention_weight: float = 0.3
    lookup_steps: int = 500  # of the full stage, at its start
    digit_share: float = 0.2
    bf16: bool = False  # products in bf16; weights and optimizer stay in fp32
    lanes: LaneShape = field(default_factory=LaneShape)

    def stage(self, step: int) -> str:
        """The stage of a step: tower or full."""
        return "tower" if step < self.tower_steps else "full"

    def object_weights(self, step: int) -> tuple[float, ...]:
        """How often a picture of this step holds one, two, three objects.

        One is rare after the tower: with one object there is nothing to look up, and not looking is learnt first.
        """
        if self.stage(step) == "tower":
            return (1, 1, 1)
        return (1, 8, 2) if self.looks_up(step) else (1, 5, 5)

    def looks_up(self, step: int) -> bool:
        """True if a step of the full stage asks short questions only."""
        return step < self.tower_steps + self.lookup_steps

    def mix(self, step: int) -> TaskMix:
        """The tasks at a step of the full stage."""
        return LOOKUPS if self.looks_up(step) else TaskMix()

    def learning_rate_at(self, step: int) -> float:
        """Warm-up at the start of each stage, then constant, linear decay to the final rate at the end."""
        start = 0 if step < self.tower_steps else self.tower_steps
        rate = self.learning_rate * min(1.0, (step - start + 1) / self.warmup_steps)
        left = self.steps - step
        if left < self.decay_steps:
            share = left / self.decay_steps
            rate = self.final_learning_rate + (rate - self.final_learning_rate) * share
        elif step < self.tower_steps and self.tower_steps - step < self.tower_steps // 4:
            rate *= max(0.1, (self.tower_steps - step) / (self.tower_steps // 4))
        return rate

    def rate_of(self, group: Mapping[str, Any], step: int) -> float:
        """The learning rate of a group of `parameter_groups`: matrices learn faster, the tower slower in the end."""
        slow = self.tower_rate_in_full if group.get("in_tower") and self.stage(step) == "full" else 1.0
        return self.learning_rate_at(step) * slow * (self.muon_rate if group.get("muon") else 1.0)


def batch_of_step(recipe: TinyRecipe, tokenizer: TextTokenizer, step: int) -> LaneBatch:
    """The data of one step."""
    tower = recipe.stage(step) == "tower"
    return make_lane_batch(
        tokenizer,
        seed=recipe.seed,
        step=step,
        batch_size=recipe.tower_batch if tower else recipe.batch,
        object_weights=recipe.object_weights(step),
        mix=recipe.mix(step),
        shape=LaneShape(0, recipe.lanes.length) if tower else recipe.lanes,
        digit_share=recipe.digit_share,
    )
