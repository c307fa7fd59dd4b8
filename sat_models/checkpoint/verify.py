"""The proof that nothing was lost: two checkpoints give the same logits, bit for bit (a painter: the same v)."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sat_models import runtime
from sat_models.checkpoint.source import Source, main_weight
from sat_models.config import LatentModelConfig, ModelConfig
from sat_models.errors import CheckpointError
from sat_models.processing.example import example_inputs, example_latents

logger = logging.getLogger(__name__)


def same_logits(first: Source, second: Source) -> None:
    """Raise CheckpointError unless both give the same logits for a small made-up input.

    They are computed in the dtype of the second, and of the first with what was done on the way to the second: LoRA
    merged, linears quantised.
    """
    stored = second.checkpoint.read()[0]
    dtype = stored[main_weight(stored)].dtype
    inputs = _inputs(first.config, dtype)
    wanted, given = _outputs(first, dtype, inputs), _outputs(second, dtype, inputs)
    given = given[..., : wanted.shape[-1]]  # a token for images may have been added
    where = first.checkpoint.step_folder
    if not wanted.isfinite().all():
        raise CheckpointError(f"{where} gives logits that are not finite, so nothing can be compared")
    if not wanted.equal(given):
        worst = (wanted.float() - given.float()).abs().max().item()
        raise CheckpointError(
            f"what was written gives logits that differ from those of {where} by up to {worst:.3g}, so it was removed "
            "again"
        )
    logger.info("%d logits equal those of %s", wanted.numel(), where)


def _inputs(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """Small and made up, as the model is called with them."""
    if isinstance(config, LatentModelConfig):
        return {name: value.to(dtype) for name, value in example_latents(config).items()}
    return example_inputs(config, 8).to(dtype=dtype).model_kwargs()


def _outputs(source: Source, dtype: torch.dtype, inputs: Mapping[str, Any]) -> Tensor:
    runtime.init_model_parallel(1)
    model, _ = source.load("cpu", dtype)
    with torch.inference_mode():
        return model.eval()(**inputs)[0]
