"""The training loop: batches in, optimiser steps, reports, evaluations and checkpoints out.

All ranks decide alike. Once per pass they share what each saw (loss, targets, a loss that is no number, a request to
stop), so that none waits for another that has left.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.checkpoint.adapter import save_adapter
from sat_models.checkpoint.io import write_rank_weights
from sat_models.checkpoint.staging import everywhere
from sat_models.errors import CheckpointError, ZooError
from sat_models.training.batches import batches
from sat_models.training.engine import DTYPES, late_failures, options_kept, set_rate, whole_parameters, zero_stage
from sat_models.training.groups import group_of, vision_groups
from sat_models.training.loop_parts import (
    Meter,
    StopRequest,
    learning_rate,
    memory_in_use,
    random_state,
    restore_random_state,
)
from sat_models.training.losses import Losses
from sat_models.training.reporting import Reporter
from sat_models.training.resuming import Progress, Start
from sat_models.training.samples import Batch
from sat_models.training.settings import FinetuneSettings
from sat_models.training.store import CheckpointStore
from sat_models.training.task import Task
from sat_models.training.trainable import GradientWatch

logger = logging.getLogger(__name__)

ENGINE_FOLDER = "engine"
RNG_FOLDER = "rng"
NOTHING_TO_DO = "nothing to do"
"""The reason of a run that had come to its end before."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: `reason` is "finished", "stopped" (SIGTERM), "no better score" or `NOTHING_TO_DO`."""

    step: int
    reason: str
    losses: list[float] = field(default_factory=list)


class Trainer:
    """One run, from the step at which it stands to its end.

    Args:
        engine: of DeepSpeed.
        settings: of the run.
        task: data, loss and evaluation; open.
        identity: what must be the same for a checkpoint to be resumed, by name.
        whole: a checkpoint holds all weights, not those alone that train.
        base_model: what the run started from, for adapters.
    """

    def __init__(
        self,
        engine: Any,
        settings: FinetuneSettings,
        task: Task,
        store: CheckpointStore,
        *,
        precision: str,
        identity: dict[str, Any],
        whole: bool,
        base_model: str,
    ) -> None:
        self.engine, self.settings, self.task, self.store = engine, settings, task, store
        self.identity, self.whole, self.base_model = identity, whole, base_model
        self.device, self.dtype = engine.device, DTYPES[precision]
        self.progress = Progress()
        self._stop = StopRequest()
        seed = settings.seed + mpu.get_data_parallel_rank()  # dropout: ranks that share a model draw alike
        runtime.seed_everything(seed)

    def resume(self, start: Start) -> None:
        """Go to the checkpoint of `find_start`."""
        with options_kept(self.engine):
            self.engine.load_checkpoint(str(start.folder), tag=ENGINE_FOLDER, load_module_strict=False)
        self.progress = start.progress
        file = start.folder / RNG_FOLDER / f"rank_{runtime.rank():03d}.pt"
        restore_random_state(torch.load(file, weights_only=False))
        logger.info("going on after step %d of %d (%s)", self.progress.step, self.settings.train_iters, start.folder)

    def run(self, reporter: Reporter) -> Outcome:
        """Train to `settings.train_iters`; a checkpoint of the last step is there when this returns.

        Raises:
            ZooError: a loss that is no number (with on_nonfinite "stop"), a bad sample, or a save that failed.
        """
        from tqdm import tqdm

        settings, progress = self.settings, self.progress
        losses: list[float] = []
        bar = tqdm(
            total=settings.train_iters,
            initial=progress.step,
            unit="step",
            dynamic_ncols=True,
            disable=runtime.rank() != 0,
        )
        watch = GradientWatch(self.engine.module) if progress.step == 0 else None
        ending = "finished"
        saved_at = progress.step if progress.step else -1
        with self._stop.listening(), bar:
            data = self._data()
            meter = Meter()
            while progress.step < settings.train_iters:
                if 0 < settings.patience <= progress.without_better:
                    ending = "no better score"
                    break
                rate = learning_rate(settings, progress.step)
                set_rate(self.engine, rate)
                values, tokens, had_images = self._step(data)
                if watch is not None:
                    watch.check(had_images=had_images)
                    watch = None
                progress.step += 1
                losses.append(values["loss"])
                meter.add(values, tokens)
                bar.update()
                shown = {"loss": f"{losses[-1]:.4g}", "lr": f"{rate:.2g}", "tok_s": f"{meter.speed:.0f}"}
                bar.set_postfix(shown, mem=memory_in_use())
                if progress.step % settings.log_interval == 0 or progress.step == settings.train_iters:
                    values = {**meter.means(), "lr": rate, "tokens_per_s": meter.speed}
                    runtime.in_step(lambda values=values: reporter.report(progress.step, values))
                score, improved = self._evaluate_if_due(reporter)
                stop = self._someone_stops()
                due = progress.step % settings.save_interval == 0 or progress.step == settings.train_iters
                if due or improved or stop:
                    self.save(score)
                    saved_at = progress.step
                if stop:
                    ending = "stopped"
                    break
        if saved_at != progress.step:
            self.save(None)
        return Outcome(step=progress.step, reason=ending, losses=losses)

    def save(self, score: float | None) -> Path:
        """Write a checkpoint of the step at which the run stands; all ranks call it."""
        info = {
            "identity": self.identity,
            "progress": vars(self.progress).copy(),
            "settings": self.settings.to_dict(),
            "base_model": self.base_model,
        }
        return self.store.save(
            self.progress.step,
            self._write,
            score=score,
            higher_is_better=self.settings.best_by != "loss",
            info=info,
        )

    def _write(self, folder: Path) -> None:
        model = self.engine.module
        trained = [p for p in model.parameters() if self.whole or p.requires_grad]
        with whole_parameters(self.engine, trained):
            everywhere(lambda: self._write_weights(folder), folder)  # nobody goes on to DeepSpeed's barriers alone
        with late_failures(self.engine):
            self.engine.save_checkpoint(
                str(folder), tag=ENGINE_FOLDER, save_latest=False, exclude_frozen_parameters=True
            )
        rng = folder / RNG_FOLDER
        rng.mkdir(exist_ok=True)
        torch.save(random_state(), rng / f"rank_{runtime.rank():03d}.pt")

    def _write_weights(self, folder: Path) -> None:
        model = self.engine.module
        if not self.whole:
            extra = {"step": self.progress.step, **self.task.extra}
            save_adapter(model, folder, base_model=self.base_model, extra=extra)
        elif mpu.get_data_parallel_rank() == 0:
            write_rank_weights(model, folder)

    def _data(self) -> Iterator[Batch]:
        settings = self.settings
        return batches(
            self.task.train,
            batch_size=settings.batch_size,
            seed=settings.seed,
            rank=mpu.get_data_parallel_rank(),
            world=mpu.get_data_parallel_world_size(),
            start_step=self.progress.passes,
            group_by_length=settings.group_by_length,
            workers=settings.workers,
        )

    def _step(self, data: Iterator[Batch]) -> tuple[dict[str, float], int, bool]:
        """One optimiser step: means over its passes of the loss and what else is reported, tokens of all ranks, whether
        it saw pictures."""
        made, tokens, had_images, skipped = [], 0, False, 0
        while len(made) < self.settings.accumulate:
            batch = runtime.in_step(lambda: next(data))
            self.progress.passes += 1
            inputs = batch.inputs.to(self.device, self.dtype)
            losses = self.task.objective(self.engine, inputs)
            loss = losses.total / max(losses.count, 1)
            if not inputs.has_images:
                loss = loss + self._vision_weights_times_zero()
            means, seen, bad = self._share(loss, losses, inputs.tokens)
            if bad:
                skipped += 1
                self._report_nonfinite(batch, loss, skipped)
                continue
            self.engine.backward(loss)
            self.engine.step()
            made.append(means)
            tokens += seen
            had_images |= inputs.has_images
        return {name: sum(one[name] for one in made) / len(made) for name in made[0]}, tokens, had_images

    def _vision_weights_times_zero(self) -> torch.Tensor | float:
        """For a batch of text alone: ranks that see pictures at the same time wait for a gradient of these weights."""
        if zero_stage(self.engine) == 3:  # each rank has parts of weights only
            return 0.0
        named = self.engine.module.named_parameters()
        groups = vision_groups()
        vision = [p for name, p in named if p.requires_grad and group_of(name) in groups]
        return sum((0.0 * p.sum(dtype=torch.float32) for p in vision), 0.0)

    def _share(self, loss: torch.Tensor, losses: Losses, tokens: int) -> tuple[dict[str, float], int, bool]:
        """Means and sum of tokens over the data-parallel ranks, and whether any rank's loss is no number."""
        values = {"loss": float(loss.detach())}
        bad = not math.isfinite(values["loss"])
        values |= {name: value / max(losses.count, 1) for name, value in losses.sums.items()}
        own = [tokens, bad, *(0.0 if bad else value for value in values.values())]
        sums = torch.tensor(own, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        world, group = runtime.world_size(), mpu.get_model_parallel_world_size()
        means = dict(zip(values, (sums[2:] / world).tolist(), strict=True))
        return means, int(sums[0]) // group, bool(sums[1] > 0)

    def _report_nonfinite(self, batch: Batch, loss: torch.Tensor, skipped: int) -> None:
        finite = bool(torch.isfinite(loss.detach()))
        named = runtime.gather_objects([] if finite else list(batch.sources))
        sources = list(dict.fromkeys(source for one in named for source in one))
        message = f"the loss of pass {self.progress.passes} is no number; its samples: {', '.join(sources)}"
        if self.settings.on_nonfinite == "stop":
            raise ZooError(
                f"{message}. The checkpoints before it are whole. Look at these samples, lower --learning_rate, use "
                "bf16 or fp32, or leave such batches out with --on_nonfinite skip"
            )
        if skipped >= 100:
            raise ZooError(f"{message}. So were the 99 batches before it: the run has diverged")
        logger.warning("%s; left out", message)

    def _evaluate_if_due(self, reporter: Reporter) -> tuple[float | None, bool]:
        """The score of this step where it is evaluated, and whether it is the best so far."""
        settings, progress = self.settings, self.progress
        if self.task.evaluator is None or not settings.eval_interval:
            return None, False
        if progress.step % settings.eval_interval and progress.step != settings.train_iters:
            return None, False
        scores, made = self.task.evaluator.evaluate(
            self.engine.module, device=self.device, dtype=self.dtype, in_step=zero_stage(self.engine) == 3
        )
        named = {f"eval/{name}": value for name, value in scores.items()}
        runtime.in_step(lambda: reporter.report(progress.step, named))
        logger.info("step %d: %s", progress.step, ", ".join(f"{name} {value:.4g}" for name, value in scores.items()))
        runtime.in_step(lambda: self._keep(made))
        if not scores:
            return None, False
        score = scores.get(settings.best_by)
        if score is None:
            raise ZooError(f"--best_by {settings.best_by}: no validation answer has such a score; use loss")
        better = progress.best is None or (
            score < progress.best if settings.best_by == "loss" else score > progress.best
        )
        progress.without_better = 0 if better else progress.without_better + 1
        progress.best = score if better else progress.best
        return score, better

    def _keep(self, made: list[Any]) -> None:
        if runtime.rank() != 0 or not made:
            return
        try:
            self.task.evaluator.keep(made, self.store.folder, self.progress.step)
        except OSError as error:
            place = error.filename or self.store.folder
            raise CheckpointError(f"cannot write {place}: {error.strerror or error}. Free space.") from error

    def _someone_stops(self) -> bool:
        flag = torch.tensor(float(self._stop.came), device=self.device)
        dist.all_reduce(flag)
        return bool(flag > 0)
