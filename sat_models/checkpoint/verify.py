"""The proof that nothing was lost: two checkpoints give the same logits, bit for bit."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from sat_models import runtime
from sat_models.checkpoint.adapter import Adapter
from sat_models.checkpoint.io import load_weights
from sat_models.checkpoint.layout import SATCheckpoint
from sat_models.checkpoint.merged import open_weights
from sat_models.checkpoint.quantise import Quantiser
from sat_models.errors import CheckpointError
from sat_models.models.build import build_model, make_config
from sat_models.models.common.quantisation import Quantisation
from sat_models.processing.example import example_inputs

logger = logging.getLogger(__name__)


def same_logits(
    first: SATCheckpoint,
    second: SATCheckpoint,
    *,
    adapter: Adapter | None = None,
    quantisation: Quantisation | None = None,
) -> None:
    """Raise CheckpointError unless both give the same logits for a small made input.

    They are computed in the dtype of the second, and `first` with what was done on the way to the second.

    Args:
        adapter: LoRA that is merged into `first`.
        quantisation: of `first`.
    """
    dtype = second.read()[0]["transformer.word_embeddings.weight"].dtype
    wanted, given = _logits(first, dtype, adapter, quantisation), _logits(second, dtype)
    if not wanted.isfinite().all():
        raise CheckpointError(f"{first.step_folder} gives logits that are not finite, so nothing can be compared")
    if not wanted.equal(given):
        worst = (wanted.float() - given.float()).abs().max().item()
        raise CheckpointError(
            f"what was written gives logits that differ from those of {first.step_folder} by up to {worst:.3g}, so it "
            "was removed again"
        )
    logger.info("%d logits equal those of %s", wanted.numel(), first.step_folder)


def _logits(
    checkpoint: SATCheckpoint,
    dtype: torch.dtype,
    adapter: Adapter | None = None,
    quantisation: Quantisation | None = None,
) -> Tensor:
    runtime.init_model_parallel(1)
    config = make_config(checkpoint.config)
    model = build_model(config, dtype=dtype)
    source = open_weights(checkpoint, model, adapter=adapter)
    load_weights(
        model, checkpoint, device="cpu", source=source,
        quantiser=Quantiser(model, quantisation) if quantisation else None,
    )  # fmt: skip
    with torch.inference_mode():
        return model.eval()(**example_inputs(config, 8).to(dtype=dtype).model_kwargs())[0]
