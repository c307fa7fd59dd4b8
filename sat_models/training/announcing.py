"""The announcement of a run before any weight is read: data, what trains, memory."""

from __future__ import annotations

import logging
from typing import Any

import torch

from mixins.packed_attention import PACKED_NAME, PackedLanesMixin
from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.models.build import build_model
from sat_models.models.common.quantisation import Quantisation, make_quantised
from sat_models.training.data import VLMDataset
from sat_models.training.data_report import images_warning
from sat_models.training.engine import DTYPES
from sat_models.training.memory import BUCKET, estimate_memory
from sat_models.training.settings import FinetuneSettings
from sat_models.training.trainable import TrainablePlan, apply_plan, trainable_table
from sat_models.zoo import load_config

logger = logging.getLogger(__name__)


def announce(
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
    if settings.pack:
        shell.add_mixin(PACKED_NAME, PackedLanesMixin())
    apply_plan(shell, plan)
    zero = ds_settings["zero_optimization"]
    data_parallel = mpu.get_data_parallel_world_size()
    length = min(max(train.lengths), settings.max_length or train.processor.max_length)
    estimate = estimate_memory(
        shell,
        config,
        batch_size=settings.batch_size * (2 if settings.objective == "dpo" else 1),
        length=length,
        images=train.largest_images or 1,
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
    if warning := images_warning(len(train), train.with_images()):
        logger.warning("training samples: %s", warning)
    kind = "pair(s) of answers" if settings.objective == "dpo" else "training sample(s)"
    rows = f" in {len(train)} rows" if settings.pack else ""
    samples = settings.batch_size * settings.accumulate * data_parallel
    print(
        f"{settings.from_pretrained} in {precision} on {runtime.world_size()} process(es): "
        f"model-parallel {settings.mp}, data-parallel {data_parallel}, ZeRO {zero['stage']}\n"
        f"{train.samples} {kind}{rows}, {len(valid) if valid else 0} for validation; {samples} "
        f"{'rows ' if settings.pack else ''}per step, "
        f"{settings.train_iters} steps ({settings.train_iters * samples / len(train):.3g} epochs), "
        f"version {train.version}, longest about {length} tokens\n\n{table}\n\n{estimate.table()}\n",
        flush=True,
    )
