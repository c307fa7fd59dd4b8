"""Trains the embedded model `cogvlm-tiny` by its recipe, on DeepSpeed's engine, CPU or GPU; resumed exactly."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mixins.packed_attention import PackedLanesMixin
from sat_models.checkpoint.io import save_checkpoint
from sat_models.errors import ConfigError
from sat_models.models.cogvlm.config import CogVLMConfig
from sat_models.models.cogvlm.model import CogVLMModel
from sat_models.shapes.milestones import share_right
from sat_models.shapes.objective import TinyObjective, parameter_groups, prepare_for_training
from sat_models.shapes.packing import LaneBatch
from sat_models.shapes.recipe import TinyRecipe, batch_of_step
from sat_models.shapes.samples import TextTokenizer
from sat_models.training.engine import import_deepspeed
from sat_models.training.muon import MuonAdamW

logger = logging.getLogger(__name__)

METRICS, MILESTONES = "metrics.jsonl", "milestones.jsonl"
MAY_CHANGE = ("steps", "decay_steps")
"""Of a recipe on resume: the length of a run, until its learning rate falls."""


def start_engine(config: CogVLMConfig, recipe: TinyRecipe, device: torch.device) -> Any:
    """A DeepSpeed engine around freshly initialised weights."""
    deepspeed = import_deepspeed(device)
    torch.manual_seed(recipe.seed)  # of what `prepare_for_training` leaves as the modules make it
    model = CogVLMModel(config)
    prepare_for_training(model, recipe.seed)
    model.add_mixin("packed", PackedLanesMixin())
    objective = TinyObjective(model, recipe).to(device)
    settings = {
        "train_micro_batch_size_per_gpu": recipe.batch,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 0},
        "steps_per_print": 10**9,
    }
    optimizer = MuonAdamW(parameter_groups(objective))
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=settings)
    return engine


def train_tiny(
    config: CogVLMConfig,
    tokenizer: TextTokenizer,
    recipe: TinyRecipe,
    folder: Path,
    *,
    device: torch.device,
    save_every: int = 250,
    log_every: int = 10,
) -> Any:
    """Train to `recipe.steps`, going on from the newest state in `folder` if there is one.

    Writes DeepSpeed states to `folder/state`, one JSON line per `log_every` steps to `folder/metrics.jsonl` and, with
    each state of the full stage, the share of right answers by kind of question to `folder/milestones.jsonl`.

    Returns:
        The DeepSpeed engine; `engine.module.model` is the trained model.

    Raises:
        ConfigError: the state in `folder` was made by another recipe (its steps may differ, until the rate falls).
    """
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    engine = start_engine(config, recipe, device)
    step, seconds = _resume(engine, folder, recipe)
    progress = tqdm(total=recipe.steps, initial=step, unit="step", dynamic_ncols=True)
    parts_seen: dict[str, list[float]] = {}
    started = time.monotonic() - seconds
    while step < recipe.steps:
        loss, parts = _one_step(engine, recipe, batch_of_step(recipe, tokenizer, step).to(device), step)
        for name, value in {"loss": loss, **parts}.items():
            parts_seen.setdefault(name, []).append(float(value))
        step += 1
        progress.update()
        if step % log_every == 0:
            means = {name: round(sum(v) / len(v), 4) for name, v in parts_seen.items()}
            parts_seen.clear()
            rest = {"lr": recipe.learning_rate_at(step - 1), "seconds": round(time.monotonic() - started, 1)}
            _add_line(folder / METRICS, {"step": step, **means, **rest})
            progress.set_postfix(loss=means["loss"])
        if step % save_every == 0 or step == recipe.steps:
            if recipe.stage(step - 1) == "full":
                _add_line(folder / MILESTONES, {"step": step, **share_right(engine.module.model, tokenizer)})
            client = {"step": step, "seconds": time.monotonic() - started, "recipe": dataclasses.asdict(recipe)}
            engine.save_checkpoint(str(folder / "state"), tag=f"step{step}", client_state=client)
            _keep_newest(folder / "state", 2)
    progress.close()
    return engine


def export_tiny(engine: Any, config: CogVLMConfig, tokenizer_file: Path, run: Path) -> Path:
    """Write what a finished run made to `cogvlm-tiny` in its folder and return that: the weights in SAT layout, fp16,
    without what served training only, and `training.json` with recipe, seconds, machine and the last milestone."""
    folder, objective = run / "cogvlm-tiny", engine.module
    objective.model.del_mixin("packed")
    save_checkpoint(objective.model, folder, config, step=1, dtype=torch.float16, tokenizer_file=tokenizer_file)
    last = {name: json.loads((run / name).read_text().splitlines()[-1]) for name in (METRICS, MILESTONES)}
    about = {
        "recipe": dataclasses.asdict(objective.recipe),
        "seconds": last[METRICS]["seconds"],
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "milestone": last[MILESTONES],
    }
    (folder / "training.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
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


def _add_line(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")


def _resume(engine: Any, folder: Path, recipe: TinyRecipe) -> tuple[int, float]:
    """Takes up the newest state, if there is one. -> steps done and seconds that they took."""
    states = folder / "state"
    if not (states / "latest").is_file():
        _forget_after(folder, 0)
        return 0, 0.0
    _, client = engine.load_checkpoint(str(states))
    step = int(client["step"])
    before, now = client.get("recipe", {}), dataclasses.asdict(recipe)
    falling = step > before.get("steps", 0) - before.get("decay_steps", 0)
    other = [name for name in sorted(now) if before.get(name) != now[name] and (falling or name not in MAY_CHANGE)]
    if other:
        told = ", ".join(f"{name} {before.get(name)} instead of {now[name]}" for name in other)
        raise ConfigError(f"the state in {states} was made by another recipe: {told}. Take that one, or another folder")
    _forget_after(folder, step)
    logger.info("resumed at step %d from %s", step, states)
    return step, float(client["seconds"])


def _forget_after(folder: Path, step: int) -> None:
    """Takes out of the logs what is done again: lines of steps after the newest state."""
    for path in (folder / METRICS, folder / MILESTONES):
        if path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            path.write_text("".join(kept), encoding="utf-8")


def _keep_newest(states: Path, count: int) -> None:
    import shutil

    steps = sorted(states.glob("step*"), key=lambda p: int(p.name.removeprefix("step")))
    for old in steps[:-count]:
        shutil.rmtree(old)
