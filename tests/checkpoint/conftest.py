"""Golden checkpoints, as they are and in copies that tests may damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixins.base import ZooModel
from sat_models import runtime
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.io import load_weights, read_weights
from sat_models.models.build import build_model, make_config

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden data."""
    return GOLDEN


@pytest.fixture(scope="session")
def whole() -> dict[str, Tensor]:
    """Weights of the CogVLM miniature, whole."""
    return read_weights(GOLDEN / "cogvlm-mini" / "1" / "mp_rank_00_model_states.pt")


@pytest.fixture(scope="session")
def halves() -> list[dict[str, Tensor]]:
    """The same weights, split in two by the original loader."""
    return [read_weights(GOLDEN / "cogvlm-mini-mp2" / "1" / f"mp_rank_0{rank}_model_states.pt") for rank in (0, 1)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the miniature's SAT folder that a test may change."""
    target = tmp_path / "weights"
    shutil.copytree(GOLDEN / "cogvlm-mini", target, ignore=shutil.ignore_patterns("reference.*", "image.png"))
    return target


@pytest.fixture
def file(folder: Path) -> Path:
    """The weights file in `folder`."""
    return folder / "1" / "mp_rank_00_model_states.pt"


@pytest.fixture(scope="session")
def meta_model() -> ZooModel:
    """The miniature's modules without weights."""
    runtime.init_model_parallel(1)
    return build_model(make_config(find_checkpoint(GOLDEN / "cogvlm-mini").config))


def load(path: Path, dtype: torch.dtype = torch.float32) -> ZooModel:
    """A model with the weights that lie at `path`."""
    runtime.init_model_parallel(1)
    checkpoint = find_checkpoint(path)
    model = build_model(make_config(checkpoint.config), dtype=dtype)
    load_weights(model, checkpoint, device="cpu")
    return model


@pytest.fixture(name="load", scope="session")
def load_fixture():
    """`load(path, dtype=float32)` -> model."""
    return load
