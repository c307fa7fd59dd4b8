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

from mixins.packed_attention import PACKED_NAME, PackedLanesMixin
from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.checkpoint.io import write_model_config
from sat_models.checkpoint.lock import FolderLock
from sat_models.errors import CheckpointError, ConfigError, run_script
from sat_models.processing.processor import Processor
from sat_models.training.announcing import announce
from sat_models.training.data import VLMDataset
from sat_models.training.engine import DTYPES, choose_precision, deepspeed_settings, start_engine
from sat_models.training.evaluating import Evaluator
from sat_models.training.grounding.asking import asking_from
from sat_models.training.loop import NOTHING_TO_DO, Outcome, Trainer
from sat_models.training.losses import NextTokens, Objective, Preference
from sat_models.training.merging import merge_apart
from sat_models.training.packing import PackedDataset, check_packs
from sat_models.training.pairs import PairDataset
from sat_models.training.reporting import Reporter
from sat_models.training.resuming import check_no_model, find_start, run_identity
from sat_models.training.settings import FinetuneSettings
from sat_models.training.settings_files import make_parser, settings_from
from sat_models.training.split import load_train_valid, validation_folders
from sat_models.training.store import CheckpointStore
from sat_models.training.trainable import TrainablePlan, apply_plan, plan_of
from sat_models.zoo import load_config, load_pretrained, load_processor
from sat_models.zoo.vlm import VLM

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
        print(next_steps(settings, outcome))
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
    tokens = {"local_tokenizer": settings.local_tokenizer, "version": settings.version}
    processor = runtime.in_step(lambda: load_processor(settings.from_pretrained, **tokens))
    train, valid = runtime.in_step(lambda: _datasets(settings, processor))
    plan = plan_from(settings)
    runtime.in_step(lambda: announce(settings, plan, train, valid, device, precision, ds_settings))
    if dry_run:
        return None
    identity = _identity(settings, ds_settings, precision, train)
    start = find_start(store, settings, identity) if settings.resume == "auto" else None
    if start is not None and start.progress.step >= settings.train_iters:
        outcome = Outcome(step=start.progress.step, reason=NOTHING_TO_DO)
    else:
        vlm = load_pretrained(
            settings.from_pretrained, device=device, dtype=DTYPES[precision], quant=settings.quant, **tokens
        )
        trainer = _trainer(settings, plan, vlm, train, valid, store, precision, identity)
        if start is not None:
            trainer.resume(start)
        runtime.in_step(lambda: _write_config(settings, vlm) if runtime.rank() == 0 else None)
        outcome = _train(settings, trainer)
    if settings.merge and outcome.reason != "stopped" and not plan.prefix_length:
        step, merged = store.folder / str(_step_to_merge(store, outcome)), store.folder / MERGED_FOLDER
        logger.info("merging step %s", step.name)
        runtime.in_step(lambda: merge_apart(step, merged, DTYPES[precision]) if runtime.rank() == 0 else None)
    return outcome


def _trainer(
    settings: FinetuneSettings,
    plan: TrainablePlan,
    vlm: VLM,
    train: VLMDataset,
    valid: VLMDataset | None,
    store: CheckpointStore,
    precision: str,
    identity: dict[str, Any],
) -> Trainer:
    """The run at its beginning."""
    if settings.pack:
        vlm.model.add_mixin(PACKED_NAME, PackedLanesMixin())
    trained = apply_plan(vlm.model, plan)
    whole = "*" in plan.full
    store.check_writable(_checkpoint_bytes(vlm.model, trained, whole) * (settings.keep_last + 2))
    evaluator = None
    if valid is not None and settings.eval_interval:
        size, objective = settings.batch_size, _objective(settings)
        evaluator = Evaluator(valid, size, settings.eval_samples, settings.eval_tokens, objective=objective)
    return Trainer(
        start_engine(vlm.model, settings, precision, vlm.device),
        settings,
        train,
        evaluator,
        store,
        precision=precision,
        identity=identity,
        whole=whole,
        base_model=_base_name(settings),
        objective=_objective(settings),
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
    if trainer.data.bad:
        logger.warning("%d bad sample(s) were left out or replaced", len(trainer.data.bad))
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


def next_steps(settings: FinetuneSettings, outcome: Outcome) -> str:
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
    merged = str(folder / MERGED_FOLDER)
    read = {name: getattr(settings, name) for name in ("prompt", "data_format", "image_root", "box_templates")}
    tasks = [f"{task}={share:g}" for task, share in (settings.box_tasks or {}).items()]
    if settings.merge and not settings.pre_seq_len:
        lines += [
            "Ask it (give a picture and a question, or leave both out to chat):",
            command("cli_demo_sat.py", "--from_pretrained", merged, "--image", "PICTURE", "--query", "QUESTION"),
            "Evaluate it:",
            command(
                "evaluate.py",
                "--task",
                "data",
                "--from_pretrained",
                merged,
                "--data",
                *map(str, settings.valid_data or validation_folders(settings.train_data) or settings.train_data),
                *(part for name, value in read.items() if value for part in (f"--{name}", str(value))),
                *(["--box_tasks", *tasks] if tasks else []),
            ),
        ]
    if not settings.pre_seq_len:  # a prefix is no weight and stays beside them
        step = str(folder / str(outcome.step))
        lines.append("Merge any step into the base model, or bring it to another number of processes:")
        script = "merge_model.py" if settings.lora_rank == -1 and settings.trainable == "all" else "merge_lora.py"
        lines.append(command(script, "--from_pretrained", step, "--output", f"{folder}/merged-{outcome.step}"))
    return "\n".join(lines)


def _datasets(settings: FinetuneSettings, processor: Processor) -> tuple[VLMDataset, VLMDataset | None]:
    train, valid = load_train_valid(
        list(settings.train_data),
        valid_data=list(settings.valid_data) or None,
        share=settings.valid_share,
        seed=settings.seed,
        on_bad=settings.on_bad_sample,
        format=settings.data_format,
        prompt=settings.prompt,
        image_root=settings.image_root,
        asking=asking_from(settings.box_tasks, settings.box_templates, seed=settings.seed, prompt=settings.prompt),
    )
    options = {"version": settings.version, "max_length": settings.max_length, "on_bad": settings.on_bad_sample}
    if settings.pack:
        check_packs(load_config(settings.from_pretrained))
    rows = PairDataset if settings.objective == "dpo" else VLMDataset
    return (
        (PackedDataset if settings.pack else rows)(train, processor, **options),
        rows(valid, processor, **options) if valid else None,
    )


def _objective(settings: FinetuneSettings) -> Objective:
    if settings.objective == "dpo":
        return Preference(settings.dpo_beta, settings.dpo_label_smoothing)
    return NextTokens()


def _checkpoint_bytes(model: torch.nn.Module, trained: Sequence[str], whole: bool) -> int:
    """About what one checkpoint takes on disk, over all ranks: weights, fp32 copies of what trains, two moments."""
    names = set(trained)
    own = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if whole or n in names)
    state = sum(p.numel() * 16 for n, p in model.named_parameters() if n in names)
    return (own + state) * mpu.get_model_parallel_world_size()


def _write_config(settings: FinetuneSettings, vlm: VLM) -> None:
    config = dataclasses.replace(vlm.config, text_processor_version=vlm.processor.version)
    write_model_config(Path(settings.save_path), config, tokenizer_file=vlm.tokenizer_file)


def _identity(
    settings: FinetuneSettings, ds_settings: dict[str, Any], precision: str, train: VLMDataset
) -> dict[str, Any]:
    """The facts that a checkpoint and a run that resumes it must have in common, the same on all ranks."""

    def own() -> dict[str, Any] | None:
        if runtime.rank():
            return None
        return run_identity(
            settings, train.records, base=_base_name(settings), precision=precision,
            zero=ds_settings["zero_optimization"]["stage"], version=train.version, max_length=train.max_length,
        )  # fmt: skip

    return runtime.broadcast_object(runtime.in_step(own))


def _base_name(settings: FinetuneSettings) -> str:
    """The name or absolute path of the model to start from."""
    given = Path(settings.from_pretrained).expanduser()
    return str(given.resolve()) if given.exists() else settings.from_pretrained
