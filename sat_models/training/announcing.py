"""The announcement of a run before any weight is read: data, what trains, memory."""

from __future__ import annotations

from typing import Any

import torch

from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.models.build import build_model
from sat_models.models.common.quantisation import Quantisation, make_quantised
from sat_models.training.engine import DTYPES
from sat_models.training.memory import BUCKET, estimate_pass
from sat_models.training.task import Task
from sat_models.training.trainable import TrainablePlan, apply_plan, trainable_table


def announce(
    task: Task, plan: TrainablePlan, device: torch.device, precision: str, ds_settings: dict[str, Any]
) -> None:
    """Say what will happen, before any weight is read: data, what trains, memory. The plan is tried on a shell."""
    settings, config = task.settings, task.config
    config.check_model_parallel(settings.mp)
    shell = build_model(config, dtype=DTYPES[precision])
    if settings.quant:
        make_quantised(shell, Quantisation(bits=settings.quant))
    task.prepare(shell)
    apply_plan(shell, plan)
    zero = ds_settings["zero_optimization"]
    data_parallel = mpu.get_data_parallel_world_size()
    estimate = estimate_pass(
        shell,
        task.probe(),
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
    print(
        f"{settings.from_pretrained} in {precision} on {runtime.world_size()} process(es): "
        f"model-parallel {settings.mp}, data-parallel {data_parallel}, ZeRO {zero['stage']}\n"
        f"{task.summary(settings.batch_size * settings.accumulate * data_parallel)}\n\n{table}\n\n"
        f"{estimate.table()}\n",
        flush=True,
    )
