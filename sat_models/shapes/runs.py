"""The loop that trains a bundled model by its recipe, on DeepSpeed's engine; resumed exactly.

A recipe says its stages, and the rates of each step; what is trained on is a function of the step. So a run that was
killed goes on as if it had not been, logs included.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sat_models.errors import ConfigError
from sat_models.training.engine import import_deepspeed
from sat_models.training.muon import MuonAdamW

logger = logging.getLogger(__name__)

METRICS, MILESTONES = "metrics.jsonl", "milestones.jsonl"
MAY_CHANGE = ("steps", "decay_steps")
"""Of a recipe on resume: the length of a run, until its learning rate falls."""


class Recipe(Protocol):
    """What the loop asks a recipe, a frozen dataclass."""

    steps: int
    batch: int

    def stage(self, step: int) -> str:
        """The stage of a step; the last one has milestones."""
        ...

    def rate_of(self, group: Mapping[str, Any], step: int) -> float:
        """The learning rate of a group of parameters at a step."""
        ...


def make_engine(objective: nn.Module, groups: list[dict[str, Any]], batch: int, device: torch.device) -> Any:
    """A DeepSpeed engine around an objective: called with a batch and the name of a stage, it gives the loss and its
    named parts."""
    settings = {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 0},
        "steps_per_print": 10**9,
    }
    deepspeed = import_deepspeed(device)
    engine, *_ = deepspeed.initialize(model=objective, optimizer=MuonAdamW(groups), config=settings)
    return engine


def train_by(
    recipe: Recipe,
    engine: Any,
    folder: Path,
    *,
    batch_of: Callable[[int], Any],
    milestone: Callable[[], Mapping[str, Any]],
    save_every: int = 250,
    log_every: int = 10,
) -> None:
    """Train to `recipe.steps`, going on from the newest state in `folder` if there is one.

    Writes DeepSpeed states to `folder/state`, one JSON line per `log_every` steps and at the end to
    `folder/metrics.jsonl` and, with each state of the last stage, one to `folder/milestones.jsonl`.

    Args:
        engine: of `make_engine`.
        batch_of: the data of a step, on the engine's device.
        milestone: what a line of milestones says of the model.

    Raises:
        ConfigError: the state in `folder` was made by another recipe (its steps may differ, until the rate falls).
    """
    from tqdm import tqdm

    step, seconds = _resume(engine, folder, recipe)
    progress = tqdm(total=recipe.steps, initial=step, unit="step", dynamic_ncols=True)
    parts_seen: dict[str, list[float]] = {}
    started, last = time.monotonic() - seconds, recipe.stage(recipe.steps - 1)
    while step < recipe.steps:
        loss, parts = _one_step(engine, recipe, batch_of(step), step)
        for name, value in {"loss": loss, **parts}.items():
            parts_seen.setdefault(name, []).append(float(value))
        step += 1
        progress.update()
        if step % log_every == 0 or step == recipe.steps:
            means = {name: round(sum(v) / len(v), 4) for name, v in parts_seen.items()}
            parts_seen.clear()
            rate = recipe.rate_of({}, step - 1)
            _add_line(folder / METRICS, {"step": step, **means, "lr": rate, "seconds": _since(started)})
            progress.set_postfix(loss=means["loss"])
        if step % save_every == 0 or step == recipe.steps:
            if recipe.stage(step - 1) == last:
                _add_line(folder / MILESTONES, {"step": step, **milestone()})
            client = {"step": step, "seconds": time.monotonic() - started, "recipe": dataclasses.asdict(recipe)}
            engine.save_checkpoint(str(folder / "state"), tag=f"step{step}", client_state=client)
            _keep_newest(folder / "state", 2)
    progress.close()


def write_about(folder: Path, recipe: Recipe, run: Path) -> None:
    """`training.json`: the recipe of a finished run, its seconds, its machine and its last milestone."""
    last = {name: json.loads((run / name).read_text().splitlines()[-1]) for name in (METRICS, MILESTONES)}
    about = {
        "recipe": dataclasses.asdict(recipe),
        "seconds": last[METRICS]["seconds"],
        "machine": f"{platform.machine()}, {os.cpu_count()} processors, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "milestone": last[MILESTONES],
    }
    (folder / "training.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _since(started: float) -> float:
    return round(time.monotonic() - started, 1)


def _one_step(engine: Any, recipe: Recipe, batch: Any, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    for group in engine.optimizer.param_groups:
        group["lr"] = recipe.rate_of(group, step)
    loss, parts = engine(batch, recipe.stage(step))
    if not math.isfinite(float(loss.detach())):
        raise FloatingPointError(f"the loss of step {step} is {float(loss.detach())}; lower the learning rate")
    engine.backward(loss)
    engine.step()
    return loss.detach(), parts


def _add_line(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")


def _resume(engine: Any, folder: Path, recipe: Recipe) -> tuple[int, float]:
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
    steps = sorted(states.glob("step*"), key=lambda p: int(p.name.removeprefix("step")))
    for old in steps[:-count]:
        shutil.rmtree(old)
