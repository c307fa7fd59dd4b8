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

from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.checkpoint.io import write_model_config
from sat_models.errors import CheckpointError, ConfigError, run_script
from sat_models.models.build import build_model
from sat_models.models.common.quantisation import Quantisation, make_quantised
from sat_models.processing.processor import Processor
from sat_models.training.data import VLMDataset
from sat_models.training.engine import DTYPES, choose_precision, deepspeed_settings, start_engine
from sat_models.training.evaluating import Evaluator
from sat_models.training.loop import Outcome, Trainer
from sat_models.training.memory import BUCKET, estimate_memory
from sat_models.training.merging import merge_apart
from sat_models.training.reporting import Reporter
from sat_models.training.settings import FinetuneSettings, make_parser, settings_from
from sat_models.training.split import load_train_valid, validation_folders
from sat_models.training.store import CheckpointStore
from sat_models.training.trainable import TrainablePlan, apply_plan, plan_of, trainable_table
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
    precision = choose_precision(settings, device)
    ds_settings = deepspeed_settings(settings, precision)
    store = CheckpointStore(Path(settings.save_path), keep_last=settings.keep_last)
    if not dry_run:
        _check_folder(settings, store)
    tokens = {"local_tokenizer": settings.local_tokenizer, "version": settings.version}
    processor = runtime.in_step(lambda: load_processor(settings.from_pretrained, **tokens))
    train, valid = runtime.in_step(lambda: _datasets(settings, processor))
    plan = plan_from(settings)
    runtime.in_step(lambda: _announce(settings, plan, train, valid, device, precision, ds_settings))
    if dry_run:
        return None
    vlm = load_pretrained(
        settings.from_pretrained, device=device, dtype=DTYPES[precision], quant=settings.quant, **tokens
    )
    trained = apply_plan(vlm.model, plan)
    whole = "*" in plan.full
    store.check_writable(_checkpoint_bytes(vlm.model, trained, whole) * (settings.keep_last + 2))
    engine = start_engine(vlm.model, settings, precision, device)
    evaluator = None
    if valid is not None and settings.eval_interval:
        evaluator = Evaluator(valid, settings.batch_size, settings.eval_samples, settings.eval_tokens)
    trainer = Trainer(
        engine,
        settings,
        train,
        evaluator,
        store,
        precision=precision,
        identity=_identity(settings, ds_settings, precision, train),
        whole=whole,
        base_model=_base_name(settings),
    )
    if settings.resume == "auto":
        trainer.resume()  # or refuses, and the folder of another run is as it was
    runtime.in_step(lambda: _write_config(settings, vlm) if runtime.rank() == 0 else None)
    reporter = Reporter(
        store.folder,
        step=trainer.progress.step,
        tensorboard=settings.tensorboard,
        wandb=settings.wandb,
        settings=settings.to_dict(),
        active=runtime.rank() == 0,
    )
    try:
        outcome = trainer.run(reporter)
    finally:
        picture = reporter.close()
    if picture:
        logger.info("loss curve: %s", picture)
    if settings.merge and outcome.reason != "stopped" and not plan.prefix_length:
        step, merged = store.folder / str(_step_to_merge(store, outcome)), store.folder / MERGED_FOLDER
        logger.info("merging step %s", step.name)
        runtime.in_step(lambda: merge_apart(step, merged, vlm.dtype) if runtime.rank() == 0 else None)
    return outcome


def _step_to_merge(store: CheckpointStore, outcome: Outcome) -> int:
    """The last step; of a run that ended because it got no better, the best one."""
    return (store.best() if outcome.reason == "no better score" else None) or outcome.step


def plan_from(settings: FinetuneSettings) -> TrainablePlan:
    """What trains, by rank, TRAINABLE and what is added to them."""
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
    if outcome.reason == "stopped":
        return f"{lines[0]}. Run the same command again to go on."
    merged = str(folder / MERGED_FOLDER)
    read = {"prompt": settings.prompt, "data_format": settings.data_format, "image_root": settings.image_root}
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
            ),
        ]
    if not settings.pre_seq_len:  # a prefix is no weight and stays beside them
        step = str(folder / str(outcome.step))
        lines.append("Merge any step into the base model, or bring it to another number of processes:")
        script = "merge_model.py" if settings.lora_rank == -1 and settings.trainable == "all" else "merge_lora.py"
        lines.append(command(script, "--from_pretrained", step, "--output", f"{folder}/merged-{outcome.step}"))
    return "\n".join(lines)


def _check_folder(settings: FinetuneSettings, store: CheckpointStore) -> None:
    if settings.resume not in ("auto", "none"):
        raise ConfigError(f"--resume is '{settings.resume}'; use auto or none (SAVE_PATH is where a run goes on)")
    store.check_writable()
    if settings.resume == "none" and store.steps():
        raise CheckpointError(
            f"{store.folder} holds checkpoints of an earlier run (step {store.steps()[-1]}), which --resume none would "
            "mix with new ones. Choose another folder, move them away, or go on with --resume auto."
        )


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
    )
    options = {"version": settings.version, "max_length": settings.max_length, "on_bad": settings.on_bad_sample}
    return (
        VLMDataset(train, processor, **options),
        VLMDataset(valid, processor, **options) if valid else None,
    )


def _announce(
    settings: FinetuneSettings,
    plan: TrainablePlan,
    train: VLMDataset,
    valid: VLMDataset | None,
    device: torch.device,
    precision: str,
    ds_settings: dict[str, Any],
) -> None:
    """Say what will happen, before any weight is read: data, what trains, memory. The plan is tried on a shell."""
    config = load_config(settings.from_pretrained)
    config.check_model_parallel(settings.mp)
    shell = build_model(config, dtype=DTYPES[precision])
    if settings.quant:
        make_quantised(shell, Quantisation(bits=settings.quant))
    apply_plan(shell, plan)
    zero = ds_settings["zero_optimization"]
    data_parallel = mpu.get_data_parallel_world_size()
    length = min(max(train.lengths), settings.max_length or train.processor.max_length)
    estimate = estimate_memory(
        shell,
        config,
        batch_size=settings.batch_size,
        length=length,
        precision=precision,
        zero_stage=zero["stage"],
        data_parallel=data_parallel,
        accumulate=settings.accumulate,
        device=device.type,
        bucket=zero.get("reduce_bucket_size", BUCKET),
        offload_optimizer="offload_optimizer" in zero,
        offload_parameters="offload_param" in zero,
        checkpoint_language=settings.checkpoint_language,
        checkpoint_vision=settings.checkpoint_vision,
    )
    table = trainable_table(shell)
    if runtime.rank() != 0:
        return
    samples = settings.batch_size * settings.accumulate * data_parallel
    print(
        f"{settings.from_pretrained} in {precision} on {runtime.world_size()} process(es): "
        f"model-parallel {settings.mp}, data-parallel {data_parallel}, ZeRO {zero['stage']}\n"
        f"{len(train)} training sample(s), {len(valid) if valid else 0} for validation; {samples} per step, "
        f"{settings.train_iters} steps ({settings.train_iters * samples / len(train):.3g} epochs), "
        f"version {train.version}, longest about {length} tokens\n\n{table}\n\n{estimate.table()}\n",
        flush=True,
    )


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
    """What a checkpoint and a run that resumes it must have in common."""
    same = ("mp", "quant", "trainable", "lora_rank", "lora_alpha", "lora_targets", "dora", "layer_range",
            "train_also", "pre_seq_len", "batch_size", "seed", "optimizer")  # fmt: skip
    plain = settings.to_dict()
    return {
        **{name: plain[name] for name in same},
        "from_pretrained": _base_name(settings),
        "processes": runtime.world_size(),
        "zero": ds_settings["zero_optimization"]["stage"],
        "precision": precision,
        "version": train.version,
        "training samples": len(train),
    }


def _base_name(settings: FinetuneSettings) -> str:
    """The name or absolute path of the model to start from."""
    given = Path(settings.from_pretrained).expanduser()
    return str(given.resolve()) if given.exists() else settings.from_pretrained
