"""Golden data (see tests/golden) and a tokenizer for the tests of `sat_models.processing`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sat_models.config import SquareImages
from sat_models.models.cogvlm.prompts import STYLES
from sat_models.processing.processor import Processor
from sat_models.processing.tokens import SentencePieceTokenizer

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def _golden(name: str) -> SimpleNamespace:
    folder = GOLDEN / name
    config = json.loads((folder / "model_config.json").read_text())
    tokenizer = SentencePieceTokenizer.from_file(folder / "tokenizer.model")
    processor = Processor(
        tokenizer,
        images=SquareImages(side=config["eva_args"]["image_size"][0], length=config["image_length"]),
        cross_image_size=config.get("cross_image_pix"),
        max_length=256,
        styles=STYLES,
        version="base",
    )
    return SimpleNamespace(
        folder=folder,
        tokenizer=tokenizer,
        processor=processor,
        image=folder / "image.png",
        image_length=config["image_length"],
    )


@pytest.fixture(scope="session", params=["cogvlm-mini", "cogagent-mini"])
def golden(request: pytest.FixtureRequest) -> SimpleNamespace:
    """Each miniature in turn: folder, tokenizer, processor, image, image_length."""
    return _golden(request.param)


@pytest.fixture(scope="session")
def mini() -> SimpleNamespace:
    """The CogVLM miniature."""
    return _golden("cogvlm-mini")
