"""The proof that nothing was lost: two checkpoints give the same logits, bit for bit."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from sat_models import runtime
from sat_models.checkpoint.source import EMBEDDING, Source
from sat_models.errors import CheckpointError
from sat_models.processing.example import example_inputs
from sat_models.processing.inputs import VLMInputs

logger = logging.getLogger(__name__)


def same_logits(first: Source, second: Source) -> None:
    """Raise CheckpointError unless both give the same logits for a small made-up input.

    They are computed in the dtype of the second, and of the first with what was done on the way to the second: LoRA
    merged, linears quantised.
    """
    dtype = second.checkpoint.read()[0][EMBEDDING].dtype
    inputs = example_inputs(first.config, 8).to(dtype=dtype)
    wanted, given = _logits(first, dtype, inputs), _logits(second, dtype, inputs)
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


def _logits(source: Source, dtype: torch.dtype, inputs: VLMInputs) -> Tensor:
    runtime.init_model_parallel(1)
    model, _ = source.load("cpu", dtype)
    with torch.inference_mode():
        return model.eval()(**inputs.model_kwargs())[0]
