"""What the parity tests of golden folders share: each names its folders as the fixture `folder`."""

from __future__ import annotations

from pathlib import Path

import pytest
from hf_golden import Reference

from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    """What the original gave for the folder."""
    return Reference(folder)


@pytest.fixture(scope="module")
def vlm(folder: Path) -> VLM:
    """The folder's model."""
    return load_pretrained(folder, device="cpu", dtype="float32")
