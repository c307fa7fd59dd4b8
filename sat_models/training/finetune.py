"""Fine-tuning from settings to a merged model: load, choose what trains, estimate, train, merge, say what is next."""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mixins.base import ZooModel
from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.checkpoint.lock import FolderLock
from sat_models.errors import CheckpointError, ConfigError, run_script
from sat_models.training.announcing import announce
from sat_models.training.engine import DTYPES, choose_precision, deepspeed_settings, start_engine
from sat_models.training.loop import NOTHING_TO_DO, Outcome, Trainer
from sat_models.training.merging import merge_apart
from sat_models.training.reporting import Reporter
from sat_models.training.resuming import check_no_model, find_start, run_identity
from sat_models.training.settings import FinetuneSettings
from sat_models.training.settings_files import make_parser, settings_from
from sat_models.training.store import CheckpointStore
from sat_models.training.task import Task
from sat_models.training.tasks import kind_of, task_of
from sat_models.training.trainable import TrainablePlan, apply_plan, plan_of

logger = logging.getLogger(__name__)

MERGED_FOLDER = "merged"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line of `scripts/finetune.py`; every process of a torchrun runs it. Returns the exit code."""
    arguments = make_parser(__doc__).parse_args(argv)
    runtime.setup_logging()
    settings = settings_from(arguments)
    if settings.sat_home:
        os.environ["SAT_HOME"] = settings.sat_home
    outcome = finetune(settings, dry_run=arguments.dry_run)
    if outcome is not None and runtime.rank() == 0:
        print(next_steps(settings, outcome, kind_of(settings)))
    return 0


def command() -> None:
    """The console command `sat-finetune`."""
    run_script(main)


def finetune(settings: FinetuneSettings, *, dry_run: bool = False) -> Outcome | None:
    """Run a fine-tuning; all processes call it. A dry run prints its plan and memory, and returns None.

    Raises:
        ZooError: settings, data, weights or a folder that cannot be used; before anything is trained where it can be
            known by then.
    """
    device = runtime.choose_device(settings.device)
    runtime.init_distributed(device)
    runtime.init_model_parallel(settings.mp)
    store = CheckpointStore(Path(settings.save_path), keep_last=settings.keep_last)
    lock = None if dry_run else _hold(settings, store)
    try:
        return _run(settings, store, device, dry_run=dry_run)
    finally:
        if lock is not None:
            lock.release()


def _hold(settings: FinetuneSettings, store: CheckpointStore) -> FolderLock | None:
    """The folder for this run alone (held by rank 0), if it can be used."""
    if settings.resume not in ("auto", "none"):
        raise ConfigError(f"--resume is '{settings.resume}'; use auto or none (SAVE_PATH is where a run goes on)")
    store.check_writable()
    lock = runtime.in_step(lambda: FolderLock(store.folder, "another fine-tuning run") if runtime.rank() == 0 else None)
    runtime.in_step(lambda: check_no_model(store))
    if settings.resume == "none" and store.steps():
        raise CheckpointError(
            f"{store.folder} holds checkpoints of an earlier run (step {store.steps()[-1]}), which --resume none would "
            "mix with new ones. Choose another folder, move them away, or go on with --resume auto."
        )
    return lock


def _run(settings: FinetuneSettings, store: CheckpointStore, device: torch.device, *, dry_run: bool) -> Outcome | None:
    precision = choose_precision(settings, device)
    ds_settings = deepspeed_settings(settings, precision)
    task = runtime.in_step(lambda: task_of(settings))
    settings, plan = task.settings, plan_from(task.settings)
    runtime.in_step(lambda: announce(task, plan, device, precision, ds_settings))
    if dry_run:
        return None
    identity = _identity(task, ds_settings, precision)
    start = find_start(store, settings, identity) if settings.resume == "auto" else None
    if start is not None and start.progress.step >= settings.train_iters:
        outcome = Outcome(step=start.progress.step, reason=NOTHING_TO_DO)
    else:
        model = task.open(device, DTYPES[precision])
        trainer = _trainer(task, model, plan, store, device, precision, identity)
        if start is not None:
            trainer.resume(start)
        runtime.in_step(lambda: task.write_config(store.folder) if runtime.rank() == 0 else None)
        outcome = _train(settings, trainer)
    if settings.merge and outcome.reason != "stopped" and not plan.prefix_length:
        step, merged = store.folder / str(_step_to_merge(store, outcome)), store.folder / MERGED_FOLDER
        logger.info("merging step %s", step.name)
        runtime.in_step(lambda: merge_apart(step, merged, DTYPES[precision]) if runtime.rank() == 0 else None)
    return outcome


def _trainer(
    task: Task,
    model: ZooModel,
    plan: TrainablePlan,
    store: CheckpointStore,
    device: torch.device,
    precision: str,
    identity: dict[str, Any],
) -> Trainer:
    """The run at its beginning."""
    settings = task.settings
    task.prepare(model)
    trained = apply_plan(model, plan)
    whole = "*" in plan.full
    store.check_writable(_checkpoint_bytes(model, trained, whole) * (settings.keep_last + 2))
    return Trainer(
        start_engine(model, settings, precision, device),
        settings,
        task,
        store,
        precision=precision,
        identity=identity,
        whole=whole,
        base_model=_base_name(settings),
    )


def _train(settings: FinetuneSettings, trainer: Trainer) -> Outcome:
    """The run from where it stands to its end, reported."""
    reporter = runtime.in_step(
        lambda: Reporter(
            trainer.store.folder,
            step=trainer.progress.step,
            tensorboard=settings.tensorboard,
            wandb=settings.wandb,
            swanlab=settings.swanlab,
            settings=settings.to_dict(),
            active=runtime.rank() == 0,
        )
    )
    try:
        outcome = trainer.run(reporter)
    finally:
        curve = reporter.close()
    if curve:
        logger.info("loss curve: %s", curve)
    if bad := trainer.task.train.bad:
        logger.warning("%d bad sample(s) were left out or replaced", len(bad))
    return outcome


def _step_to_merge(store: CheckpointStore, outcome: Outcome) -> int:
    """The last step; of a run that ended because it got no better, the best one."""
    return (store.best() if outcome.reason == "no better score" else None) or outcome.step


def plan_from(settings: FinetuneSettings) -> TrainablePlan:
    """The plan of what trains, by rank, TRAINABLE and what is added to them."""
    options: dict[str, Any] = {
        "prefix_length": settings.pre_seq_len,
        "rate_scales": settings.rate_scales or {},
        "seed": settings.seed,
    }
    if settings.lora_rank > 0:
        options |= {
            "alpha": 1.0 if settings.lora_alpha is None else settings.lora_alpha,
            "dropout": settings.lora_dropout,
            "use_dora": settings.dora,
            "layer_range": settings.layer_range,
        }
    plan = plan_of(settings.trainable, settings.lora_rank, **options)
    changes: dict[str, Any] = {}
    if settings.lora_targets:
        changes["lora"] = settings.lora_targets
    if settings.train_also:
        changes["full"] = (*plan.full, *settings.train_also)
    return dataclasses.replace(plan, **changes)


def next_steps(settings: FinetuneSettings, outcome: Outcome, task: type[Task]) -> str:
    """The commands that follow, ready to be copied."""
    scripts = Path(sys.argv[0]).parent if Path(sys.argv[0]).name == "finetune.py" else Path("scripts")
    folder = Path(settings.save_path)

    def command(script: str, *arguments: str) -> str:
        return "  " + shlex.join(["python", str(scripts / script), *arguments])

    lines = [f"{outcome.reason}: step {outcome.step} of {settings.train_iters} in {folder}"]
    if outcome.reason == NOTHING_TO_DO:
        lines = [
            f"nothing to do: step {outcome.step} of {settings.train_iters} was reached in {folder} before. Give a "
            "larger --train_iters to go on; to start anew, choose another --save_path or move this folder away."
        ]
    if outcome.reason == "stopped":
        return f"{lines[0]}. Run the same command again to go on."
    if settings.merge and not settings.pre_seq_len:
        for what, script, arguments in task.try_it(settings, str(folder / MERGED_FOLDER)):
            lines += [what, command(script, *arguments)]
    if not settings.pre_seq_len:  # a prefix is no weight and stays beside them
        step = str(folder / str(outcome.step))
        lines.append("Merge any step into the base model, or bring it to another number of processes:")
        script = "merge_model.py" if settings.lora_rank == -1 and settings.trainable == "all" else "merge_lora.py"
        lines.append(command(script, "--from_pretrained", step, "--output", f"{folder}/merged-{outcome.step}"))
    return "\n".join(lines)


def _checkpoint_bytes(model: torch.nn.Module, trained: Sequence[str], whole: bool) -> int:
    """About what one checkpoint takes on disk, over all ranks: weights, fp32 copies of what trains, two moments."""
    names = set(trained)
    own = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if whole or n in names)
    state = sum(p.numel() * 16 for n, p in model.named_parameters() if n in names)
    return (own + state) * mpu.get_model_parallel_world_size()


def _identity(task: Task, ds_settings: dict[str, Any], precision: str) -> dict[str, Any]:
    """The facts that a checkpoint and a run that resumes it must have in common, the same on all ranks."""

    def own() -> dict[str, Any] | None:
        if runtime.rank():
            return None
        zero = ds_settings["zero_optimization"]["stage"]
        made = {"from_pretrained": _base_name(task.settings), "zero": zero, "precision": precision}
        return run_identity(task.settings, task.records, {**made, **task.facts()})

    return runtime.broadcast_object(runtime.in_step(own))


def _base_name(settings: FinetuneSettings) -> str:
    """The name or absolute path of the model to start from."""
    given = Path(settings.from_pretrained).expanduser()
    return str(given.resolve()) if given.exists() else settings.from_pretrained
