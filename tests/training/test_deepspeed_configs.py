"""The DeepSpeed presets, read by DeepSpeed itself."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "deepspeed"
PRESETS = {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}
OFFLOADED = {"zero2-offload": (True, False), "zero3-offload": (True, True)}
"""Configs that put something on the host: (the optimiser, the parameters)."""


@pytest.fixture(scope="module", autouse=True)
def on_cpu() -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def parsed(preset: dict[str, Any]) -> Any:
    """DeepSpeed's own view of a preset, with what the training loop adds."""
    from deepspeed.runtime.config import DeepSpeedConfig

    return DeepSpeedConfig({**preset, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3})


def test_all_presets_are_there():
    assert sorted(PRESETS) == ["zero0", "zero1", "zero2", "zero2-offload", "zero3", "zero3-offload"]


@pytest.mark.parametrize("name", PRESETS)
def test_deepspeed_reads_what_the_name_says(name):
    config = parsed(PRESETS[name])
    assert config.zero_optimization_stage == int(name[4]) and config.train_micro_batch_size_per_gpu == 2
    zero = config.zero_config
    optimizer, parameters = OFFLOADED.get(name, (False, False))
    assert (zero.offload_optimizer is not None and zero.offload_optimizer.device == "cpu") is optimizer
    assert (zero.offload_param is not None and zero.offload_param.device == "cpu") is parameters


@pytest.mark.parametrize("name", PRESETS)
def test_no_preset_says_what_a_flag_says(name):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    from sat_models.training.engine import OURS

    preset = PRESETS[name]
    assert preset.keys() == {"zero_optimization"} and not preset.keys() & OURS.keys()
    known = {alias for key, field in DeepSpeedZeroConfig.model_fields.items() for alias in (key, field.alias) if alias}
    assert preset["zero_optimization"].keys() <= known, "DeepSpeed would ignore it, or refuse it"


def test_an_offload_outside_zero_optimization_would_be_ignored():
    """Why the place matters: the original's settings had it there."""
    config = parsed({"zero_optimization": {"stage": 2}, "offload_optimizer": {"device": "cpu"}})
    assert config.zero_config.offload_optimizer is None
