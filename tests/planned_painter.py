"""A random painter of the bundled kind, small, as a SAT folder."""

from __future__ import annotations

from pathlib import Path

import torch

from sat_models import runtime
from sat_models.checkpoint.io import save_checkpoint
from sat_models.models.cogview_tiny.config import CogViewTinyConfig
from sat_models.models.cogview_tiny.model import CogViewTinyModel
from sat_models.shapes.painter_recipe import painter_config
from sat_models.shapes.painter_training import prepare_for_training

SIZES = {
    "num_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "levels": (5, 4, 3), "codec_width": 16,
    "codec_layers": 1,
}  # fmt: skip


def small_config() -> CogViewTinyConfig:
    return painter_config(**SIZES)


def small_model(seed: int = 0) -> CogViewTinyModel:
    runtime.init_distributed(torch.device("cpu"))
    runtime.init_model_parallel(1)
    torch.manual_seed(seed)
    model = CogViewTinyModel(small_config())
    prepare_for_training(model, seed)
    return model


def small_folder(place: Path) -> Path:
    """With a model_config.json and weights."""
    model = small_model()
    save_checkpoint(model, place, model.config, step=1)
    return place
