"""From settings and a model to a DeepSpeed engine: precision, ZeRO, optimiser, activation checkpointing."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from mixins.base import ZooModel
from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.errors import ConfigError
from sat_models.registry import config_file
from sat_models.training.muon import MuonAdamW
from sat_models.training.settings import FinetuneSettings
from sat_models.training.trainable import parameter_groups

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_ZERO = 1
OURS = {
    "train_batch_size": "--batch_size",
    "train_micro_batch_size_per_gpu": "--batch_size",
    "gradient_accumulation_steps": "--accumulate",
    "gradient_clipping": "--clip",
    "optimizer": "--learning_rate, --weight_decay and --adam_betas",
    "scheduler": "--schedule, --warmup and --min_learning_rate",
    "activation_checkpointing": "--checkpoint_language and --checkpoint_vision",
}
"""Keys of DeepSpeed settings that a flag says; the flag is the one place."""


def choose_precision(settings: FinetuneSettings, device: torch.device) -> str:
    """fp32, bf16 or fp16. Raises ConfigError for fp16 on a CPU, which DeepSpeed cannot train, and for Apple's GPUs."""
    if device.type == "mps":
        raise ConfigError("device 'mps' answers, but fine-tuning was never run on it; use --device cpu, or a CUDA GPU")
    if settings.precision != "auto":
        if settings.precision == "fp16" and device.type == "cpu":
            raise ConfigError("fp16 trains on GPUs only (DeepSpeed); use --precision fp32 or bf16 on a CPU")
        return settings.precision
    dtype = runtime.choose_dtype("auto", device)
    return next(name for name, kind in DTYPES.items() if kind == dtype)


def deepspeed_settings(settings: FinetuneSettings, precision: str) -> dict[str, Any]:
    """The config for `deepspeed.initialize`: the chosen file, completed by the flags.

    Raises:
        ConfigError: no such file, or one that says what a flag says.
    """
    chosen = _read(settings.deepspeed) if settings.deepspeed else {}
    said = sorted(chosen.keys() & OURS)
    if said:
        raise ConfigError(f"{settings.deepspeed} sets {said[0]}, which {OURS[said[0]]} says; take it out of the file")
    zero = dict(chosen.get("zero_optimization", {}))
    if settings.zero is not None and zero.get("stage", settings.zero) != settings.zero:
        raise ConfigError(
            f"--zero {settings.zero} contradicts stage {zero['stage']} of {settings.deepspeed}; drop one of the two"
        )
    default = 0 if settings.optimizer == "muon" else DEFAULT_ZERO
    zero.setdefault("stage", default if settings.zero is None else settings.zero)
    if settings.optimizer == "muon" and (zero["stage"], precision, settings.mp) != (0, "fp32", 1):
        raise ConfigError(
            f"--optimizer muon needs whole matrices in fp32, but the run is in {precision} with ZeRO {zero['stage']} "
            f"and model-parallel size {settings.mp}; use --precision fp32 --zero 0 --mp 1, or --optimizer adamw"
        )
    for name in ("bf16", "fp16"):
        if chosen.get(name, {}).get("enabled", precision == name) != (precision == name):
            raise ConfigError(f"{settings.deepspeed} sets {name}, but the run is in {precision}; use --precision")
    made = {
        "train_micro_batch_size_per_gpu": settings.batch_size,
        "gradient_accumulation_steps": settings.accumulate,
        "gradient_clipping": settings.clip,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if precision != "fp32":
        made[precision] = {**chosen.get(precision, {}), "enabled": True}
    return {**chosen, **made}


def start_engine(model: ZooModel, settings: FinetuneSettings, precision: str, device: torch.device) -> Any:
    """The engine around a model to which the plan has been applied; all ranks call it.

    The model is moved to `device` and cast. Only what requires a gradient gets optimiser state.
    """
    deepspeed = import_deepspeed(device)
    recompute(model, language=settings.checkpoint_language, vision=settings.checkpoint_vision)
    groups = parameter_groups(
        model,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        rate_scales=settings.rate_scales,
        muon_rate=settings.muon_rate if settings.optimizer == "muon" else None,
    )
    make = MuonAdamW if settings.optimizer == "muon" else torch.optim.AdamW
    optimizer = make(groups, betas=settings.adam_betas)
    engine, *_ = deepspeed.initialize(
        model=model.to(device, DTYPES[precision]),
        optimizer=optimizer,
        config=deepspeed_settings(settings, precision),
        mpu=mpu,
        dist_init_required=False,
    )
    return engine


def import_deepspeed(device: torch.device) -> ModuleType:
    """DeepSpeed, for this device. It is imported in training alone, for it takes seconds.

    On CPUs it would compile an extension for collectives at its first start, for a minute, under a lock file that a
    killed process leaves behind for all that follow to wait for. gloo does without.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("LOCAL_RANK", str(runtime.local_rank()))  # it insists, also without a launcher
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        import deepspeed
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"training runs on DeepSpeed, and '{error.name}' is not installed here: pip install deepspeed"
        ) from error

    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for name in ("DeepSpeed", "deepspeed"):  # much at INFO; warnings stay
        logging.getLogger(name).setLevel(logging.WARNING)
    return deepspeed


def recompute(model: ZooModel, *, language: bool, vision: bool) -> None:
    """Activation checkpointing by stack; of vision towers only where something in them trains.

    A tower that is frozen keeps nothing for a backward pass anyway.
    """
    for name, module in model.named_modules():
        if hasattr(module, "checkpoint_activations"):
            trains = any(parameter.requires_grad for parameter in module.parameters())
            module.checkpoint_activations = language if name == "transformer" else vision and trains


def set_rate(engine: Any, rate: float) -> None:
    """Give every group its share of a step's learning rate."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)


@contextmanager
def options_kept(engine: Any) -> Iterator[None]:
    """Inside, a checkpoint is loaded: rates, decay, betas and clipping stay those of this run, not the saved ones."""
    kept = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    clip = getattr(engine.optimizer, "clip_grad", None)
    yield
    for group, options in zip(engine.optimizer.param_groups, kept, strict=True):
        group.update(options)
    if clip is not None:
        engine.optimizer.clip_grad = clip


@contextmanager
def late_failures(engine: Any) -> Iterator[None]:
    """Inside, DeepSpeed saves: a file that cannot be written is an error at the end of the block.

    All ranks have passed DeepSpeed's barriers by then. Raised where it happens, it would leave the others waiting.
    """
    writer, failures = engine.checkpoint_engine, []
    write = writer.save

    def save(*args: Any, **kwargs: Any) -> None:
        try:
            write(*args, **kwargs)
        except (OSError, RuntimeError) as error:
            failures.append(error)

    writer.save = save
    try:
        yield
    finally:
        del writer.save
    if failures:
        raise failures.pop(0)


def zero_stage(engine: Any) -> int:
    """The ZeRO stage an engine runs with."""
    return int(engine.zero_optimization_stage())


def whole_parameters(engine: Any, parameters: list[nn.Parameter]) -> Any:
    """A context in which parameters are whole on each rank: under ZeRO-3 they are gathered, else they are anyway."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, enabled=zero_stage(engine) == 3)


def _read(name: str) -> Mapping[str, Any]:
    file = Path(name) if name.endswith(".json") else config_file(f"deepspeed/{name}.json")
    if file is None or not file.is_file():
        raise ConfigError(f"--deepspeed {name}: neither a name in configs/deepspeed nor a .json file")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the DeepSpeed settings {file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the DeepSpeed settings {file} must be a JSON object")
    return content
