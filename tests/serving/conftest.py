"""Lets the tests here import `speaking`; a picture to talk about."""

import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A grey picture of 200 x 100 pixels."""
    path = tmp_path / "cat.png"
    Image.new("RGB", (200, 100), "grey").save(path)
    return path
