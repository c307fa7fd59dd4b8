"""A painter from an opened checkpoint: its transformer, and the parts that lie beside it."""

from __future__ import annotations

import torch

from sat_models import runtime
from sat_models.checkpoint.painter_parts import check_parts, open_codec, open_text_encoder
from sat_models.checkpoint.source import Source
from sat_models.config.diffusion import DiffusionConfig
from sat_models.models.common.diffusion import DiffusionModel
from sat_models.zoo.painter import Painter
from sat_models.zoo.token_painter import TokenPainter


def open_painter(source: Source, *, device: torch.device, dtype: torch.dtype, keep: str) -> Painter | TokenPainter:
    """A painter whose weights are held against its sizes; they are read when they are needed.

    Raises:
        CheckpointError: names or shapes that do not fit.
    """
    runtime.in_step(lambda: source.open(dtype))

    def model() -> DiffusionModel:
        return runtime.in_step(lambda: source.load(device, dtype))[0].eval().requires_grad_(False)

    checkpoint, config = source.checkpoint, source.config
    if not isinstance(config, DiffusionConfig):
        return TokenPainter(config, model=model, device=device, dtype=dtype, checkpoint=checkpoint)
    return Painter(
        config,
        model=model,
        text_encoder=lambda: open_text_encoder(checkpoint.step_folder, config, device=device, dtype=dtype),
        check=lambda: check_parts(checkpoint.step_folder, config),
        codec=lambda: open_codec(checkpoint.step_folder, config, device=device, dtype=dtype),
        device=device,
        dtype=dtype,
        checkpoint=checkpoint,
        keep=keep,
    )
