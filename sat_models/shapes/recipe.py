"""The training recipe of the embedded model `cogvlm-tiny`, from random weights, on DeepSpeed's engine.

Stage "tower": the vision tower alone, told densely what lies on each patch (colour, form, size, box). A released tower
comes pre-trained; this is how a tiny one gets there in minutes. Stage "full": everything, many questions about each
picture, with the dense task kept at a low weight. First pictures hold one object, later up to three.

The learning rate warms up, stays, and falls in the last `decay_steps` (warmup-stable-decay, arXiv 2404.06395), so a run
can be lengthened without repeating it. Batches are functions of (seed, step): a resumed run sees the same data.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.packed_attention import PackedLanesMixin
from sat_models.checkpoint.io import save_checkpoint
from sat_models.models.cogvlm.config import CogVLMConfig
from sat_models.models.cogvlm.model import CogVLMModel
from sat_models.shapes.packing import LaneBatch, LaneShape, make_lane_batch
from sat_models.shapes.samples import TASKS, TaskMix, TextTokenizer
from sat_models.shapes.scenes import COLORS, FORMS, SIZES
from sat_models.training.engine import import_deepspeed
from sat_models.training.muon import MuonAdamW

logger = logging.getLogger(__name__)

CLASS_COUNTS = (len(COLORS) + 1, len(FORMS) + 1, len(SIZES) + 1)
BOX_DIGITS = 2  # of three: the last one is below a pixel
TASK_WEIGHTS = {"caption": 1.0, "vqa": 3.0, "rec": 1.0, "reg": 3.0, "grounded_caption": 0.7, "chat": 1.0}
"""On top of the weights of `target_weights`: short answers count more, since boxes are many tokens."""


@dataclass(frozen=True, kw_only=True)
class TinyRecipe:
    """What is done when. Steps count from 0 over both stages."""

    seed: int = 0
    tower_steps: int = 500
    steps: int = 6000
    decay_steps: int = 3000
    warmup_steps: int = 30
    tower_batch: int = 48
    batch: int = 16
    learning_rate: float = 1.5e-3  # of vectors and embeddings (AdamW)
    muon_rate: float = 10.0  # matrices (Muon) learn at this multiple of it
    final_learning_rate: float = 5e-5
    tower_rate_in_full: float = 0.3  # scale of the tower's learning rate in the full stage
    dense_weight: float = 0.5
    two_objects_at: int = 150  # steps into the full stage
    three_objects_at: int = 400
    lanes: LaneShape = field(default_factory=LaneShape)

    def stage(self, step: int) -> str:
        """The stage of a step: tower or full."""
        return "tower" if step < self.tower_steps else "full"

    def object_weights(self, step: int) -> tuple[float, ...]:
        """How often a picture of this step holds one, two, three objects.

        Where several are allowed, one is rare: with one object there is nothing to tell apart, which is learnt first.
        """
        into = step - self.tower_steps
        if into < 0:
            return (1, 1, 1)
        return (1,) if into < self.two_objects_at else (1, 2) if into < self.three_objects_at else (1, 5, 5)

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


def prepare_for_training(model: CogVLMModel, seed: int) -> None:
    """Initial weights for learning from nothing.

    SAT's defaults suit fine-tuning of released weights. From scratch, output norms at gain 1 drown the residual stream
    of a post-norm tower, and position vectors of 0.02 are too faint to place anything.
    """
    torch.manual_seed(seed)
    eva = model.get_mixin("eva")
    tower = eva.vit_model.transformer
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embeddings" not in name:
                gain = 0.5 if ".vit_model." in name or "lm_head" in name else 1.5 if ".linear_proj." in name else 1.0
                nn.init.normal_(parameter, std=gain / math.sqrt(parameter.shape[1]))
        for vector in (model.transformer.word_embeddings.weight, eva.boi, eva.eoi):
            nn.init.normal_(vector, std=0.3)
        for vector in (tower.position_embeddings.weight, tower.word_embeddings.weight):
            nn.init.normal_(vector, std=0.5)
        for layer in tower.layers:
            layer.input_layernorm.weight.fill_(0.2)
            layer.post_attention_layernorm.weight.fill_(0.2)


class DenseHead(nn.Module):
    """Auxiliary: from each patch's features to what lies on it. Not part of the model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.classes = nn.Linear(width, sum(CLASS_COUNTS))
        self.box = nn.Linear(width, 4 * BOX_DIGITS * 10)

    def forward(self, features: Tensor, batch: LaneBatch) -> dict[str, Tensor]:
        """features [B, C, V] -> named scalar losses; boxes are judged on patches that hold an object."""
        normed = self.norm(features)
        losses = {}
        for name, logits, target in zip(
            ("color", "form", "size"),
            self.classes(normed).split(CLASS_COUNTS, dim=-1),
            batch.patch_classes.unbind(-1),
            strict=True,
        ):
            losses[name] = F.cross_entropy(logits.flatten(0, -2), target.flatten())
        on_object = batch.patch_classes[..., 0] > 0
        digits = torch.stack((batch.patch_box // 100, batch.patch_box // 10 % 10), dim=-1)[on_object]
        logits = self.box(normed[on_object]).unflatten(-1, (4, BOX_DIGITS, 10))
        losses["box"] = F.cross_entropy(logits.flatten(0, -2), digits.flatten())
        return losses


class TinyObjective(nn.Module):
    """Model and auxiliary head as the one module that DeepSpeed trains."""

    def __init__(self, model: CogVLMModel, dense_weight: float) -> None:
        super().__init__()
        self.model, self.dense_weight = model, dense_weight
        self.head = DenseHead(model.config.eva_args.hidden_size)

    def forward(self, batch: LaneBatch, stage: str) -> tuple[Tensor, dict[str, Tensor]]:
        """-> loss and its named parts (detached); per-task parts are means over that task's target tokens."""
        tower = self.model.get_mixin("eva").vit_model
        if stage == "tower":
            dense = self.head(tower(batch.vision_image), batch)
            return sum(dense.values()), {k: v.detach() for k, v in dense.items()}
        kept: list[Tensor] = []
        hook = tower.register_forward_hook(lambda module, inputs, output: kept.append(output))
        try:
            logits = self.model(**batch.model_inputs())[0]
        finally:
            hook.remove()
        dense = self.head(kept[0], batch)
        trained = batch.labels >= 0
        each = F.cross_entropy(logits[trained].float(), batch.labels[trained], reduction="none")
        parts = {k: v.detach() for k, v in dense.items()}
        tasks = batch.task_ids[trained]
        for number, task in enumerate(TASKS):
            if (tasks == number).any():
                parts[task] = each.detach()[tasks == number].mean()
        weights = each.new_tensor([TASK_WEIGHTS[task] for task in TASKS])[tasks] * batch.weights[trained]
        return (each * weights).sum() / weights.sum() + self.dense_weight * sum(dense.values()), parts


def parameter_groups(objective: TinyObjective) -> list[dict[str, Any]]:
    """Tower apart from the rest (it learns slower in the full stage); hidden matrices apart from everything else."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in objective.named_parameters():
        in_tower = ".vit_model." in name or name.startswith("head.")
        hidden = parameter.ndim == 2 and not any(part in name for part in ("embeddings", "lm_head", "head."))
        parameter.model_parallel = getattr(parameter, "model_parallel", False)
        groups.setdefault((in_tower, hidden), []).append(parameter)
    return [{"params": p, "in_tower": in_tower, "muon": hidden} for (in_tower, hidden), p in groups.items()]


def start_engine(config: CogVLMConfig, recipe: TinyRecipe, device: torch.device) -> Any:
    """A DeepSpeed engine around freshly initialised weights."""
    deepspeed = import_deepspeed(device)
    model = CogVLMModel(config)
    prepare_for_training(model, recipe.seed)
    model.add_mixin("packed", PackedLanesMixin())
    objective = TinyObjective(model, recipe.dense_weight).to(device)
    settings = {
        "train_micro_batch_size_per_gpu": recipe.batch,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 0},
        "steps_per_print": 10**9,
    }
    optimizer = MuonAdamW(parameter_groups(objective))
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=settings)
    return engine


def batch_of_step(recipe: TinyRecipe, tokenizer: TextTokenizer, step: int, mix: TaskMix) -> LaneBatch:
    """The data of one step."""
    tower = recipe.stage(step) == "tower"
    return make_lane_batch(
        tokenizer,
        seed=recipe.seed,
        step=step,
        batch_size=recipe.tower_batch if tower else recipe.batch,
        object_weights=recipe.object_weights(step),
        mix=mix,
        shape=LaneShape(0, recipe.lanes.length) if tower else recipe.lanes,
    )


def train_tiny(
    config: CogVLMConfig,
    tokenizer: TextTokenizer,
    recipe: TinyRecipe,
    folder: Path,
    *,
    device: torch.device,
    save_every: int = 250,
    log_every: int = 10,
    mix: TaskMix | None = None,
) -> Any:
    """Train to `recipe.steps`, going on from the newest state in `folder` if there is one.

    Writes DeepSpeed states to `folder/state` and one JSON line per `log_every` steps to `folder/metrics.jsonl`.

    Returns:
        The DeepSpeed engine; `engine.module.model` is the trained model.
    """
    from tqdm import tqdm

    mix = mix or TaskMix()
    folder.mkdir(parents=True, exist_ok=True)
    engine = start_engine(config, recipe, device)
    step = _resume(engine, folder / "state")
    progress = tqdm(total=recipe.steps, initial=step, unit="step", dynamic_ncols=True)
    parts_seen: dict[str, list[float]] = {}
    started = time.monotonic()
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        while step < recipe.steps:
            loss, parts = _one_step(engine, recipe, batch_of_step(recipe, tokenizer, step, mix).to(device), step)
            for name, value in {"loss": loss, **parts}.items():
                parts_seen.setdefault(name, []).append(float(value))
            step += 1
            progress.update()
            if step % log_every == 0:
                means = {name: round(sum(v) / len(v), 4) for name, v in parts_seen.items()}
                parts_seen.clear()
                record = {"step": step, "lr": recipe.learning_rate_at(step - 1), **means}
                record["seconds"] = round(time.monotonic() - started, 1)
                metrics.write(json.dumps(record) + "\n")
                metrics.flush()
                progress.set_postfix(loss=means["loss"])
            if step % save_every == 0 or step == recipe.steps:
                engine.save_checkpoint(str(folder / "state"), tag=f"step{step}", client_state={"step": step})
                _keep_newest(folder / "state", 2)
    progress.close()
    return engine


def export_tiny(model: CogVLMModel, config: CogVLMConfig, tokenizer_file: Path, folder: Path) -> Path:
    """Write the trained weights in SAT layout, fp16, without what served training only. Returns `folder`."""
    model.del_mixin("packed")
    save_checkpoint(model, folder, config, step=1, dtype=torch.float16, tokenizer_file=tokenizer_file)
    return folder


def _one_step(engine: Any, recipe: TinyRecipe, batch: LaneBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    stage, rate = recipe.stage(step), recipe.learning_rate_at(step)
    for group in engine.optimizer.param_groups:
        slow = recipe.tower_rate_in_full if group["in_tower"] and stage == "full" else 1.0
        group["lr"] = rate * slow * (recipe.muon_rate if group["muon"] else 1.0)
    loss, parts = engine(batch, stage)
    if not math.isfinite(float(loss.detach())):
        raise FloatingPointError(f"the loss of step {step} is {float(loss.detach())}; lower the learning rate")
    engine.backward(loss)
    engine.step()
    return loss.detach(), parts


def _resume(engine: Any, states: Path) -> int:
    if not (states / "latest").is_file():
        return 0
    _, client = engine.load_checkpoint(str(states))
    logger.info("resumed at step %d from %s", client["step"], states)
    return int(client["step"])


def _keep_newest(states: Path, count: int) -> None:
    import shutil

    steps = sorted(states.glob("step*"), key=lambda p: int(p.name.removeprefix("step")))
    for old in steps[:-count]:
        shutil.rmtree(old)
