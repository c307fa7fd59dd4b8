"""CogView2 and CogVideo in a tiny form, with random weights, and all files that go with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ice_files import write_ice_files

from sat_models import runtime
from sat_models.checkpoint.io import save_checkpoint
from sat_models.models.build import build_model, make_config

CODES = 200
SIZES = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "max_sequence_length": 1024}
SIDE = 4
"""Codes on a side of a small image."""
CELLS = SIDE**2
LARGE = 9 * CELLS
MODELS: dict[str, dict[str, Any]] = {
    "coglm": {"model_class": "CogLMModel", "image_cells": CELLS},
    "cogview2-dsr": {
        "model_class": "DirectSRModel", "layout": [96, 96 + CELLS, 96 + CELLS + LARGE],
        "new_sequence_length": 1024 + LARGE,
    },
    "cogview2-itersr": {
        "model_class": "IterativeSRModel", "layout": [16, 16 + LARGE], "new_sequence_length": 1024 + LARGE
    },
    "cogvideo-stage1": {
        "model_class": "CogVideoModel", "layout": [64, 64 + CELLS, 64 + 5 * CELLS], "additional_seqlen": 5 * CELLS,
        "cogvideo_stage": 1,
    },
    "cogvideo-stage2": {
        "model_class": "CogVideoModel", "layout": [64, 64 + CELLS, 64 + 5 * CELLS], "additional_seqlen": 5 * CELLS,
        "cogvideo_stage": 2, "window_size": 2,
    },
}  # fmt: skip


def write_painters(home: Path, *names: str) -> Path:
    """The folders of models (default: all) and icetk's files in one folder."""
    runtime.init_distributed("cpu")
    runtime.init_model_parallel(1)
    pieces = write_ice_files(home / "icetk", CODES)
    for seed, name in enumerate(names or MODELS):
        torch.manual_seed(seed)
        sizes = {**SIZES, "vocab_size": CODES + pieces + 4, "image_codes": CODES}
        sizes["vocab_size"] += sizes["vocab_size"] % 2
        config = make_config({**MODELS[name], **sizes})
        model = build_model(config, device="cpu")
        for parameter in model.parameters():
            if parameter.ndim > 1:  # norms stay, so that a text counts
                torch.nn.init.normal_(parameter, std=0.3)
        save_checkpoint(model, home / name, config, step=1)
    return home
