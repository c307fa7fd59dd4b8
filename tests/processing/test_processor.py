"""The processor's choices and refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sat_models.errors import ConfigError, InputError, UnknownNameError
from sat_models.processing.processor import Processor
from sat_models.processing.prompts import PROMPT_VERSIONS, build_prompt


def test_versions() -> None:
    assert PROMPT_VERSIONS == ("base", "chat", "vqa", "chat_old")
    with pytest.raises(UnknownNameError, match=r"chat-old.*Did you mean chat_old.*--version"):
        build_prompt("chat-old", "x")


def test_explicit_version_beats_the_default(mini: SimpleNamespace) -> None:
    default, explicit = mini.processor(None, "x"), mini.processor(None, "x", version="chat")
    assert mini.tokenizer.decode(default.input_ids[0].tolist()) == "x"
    assert mini.tokenizer.decode(explicit.input_ids[0].tolist()) == " [INST] x [/INST] "


def test_image_forms_agree(mini: SimpleNamespace) -> None:
    first = mini.processor(mini.image, "x")
    for image in (str(mini.image), Image.open(mini.image), [mini.image], mini.image.read_bytes()):
        other = mini.processor(image, "x")
        assert torch.equal(first.vision_image, other.vision_image)
        assert torch.equal(first.input_ids, other.input_ids)


def test_several_images_and_none(golden: SimpleNamespace) -> None:
    two = golden.processor([golden.image, golden.image], "x")
    assert two.vision_image.shape[0] == 2
    assert int(two.image_embed_mask.sum()) == 2 * (golden.image_length + 2)
    for nothing in (None, []):
        text_only = golden.processor(nothing, "x")
        assert text_only.vision_image is None and text_only.cross_image is None
        assert int(text_only.image_embed_mask.sum()) == 0


def test_prompt_too_long(mini: SimpleNamespace) -> None:
    with pytest.raises(InputError, match=r"takes \d+ tokens \(1 picture\(s\) of 18, \d+ of text\).*context is 256"):
        mini.processor(mini.image, "word " * 300)


def test_empty_question(mini: SimpleNamespace) -> None:
    for query in ("", "  \n"):
        with pytest.raises(InputError, match=r"question is empty.*--no_prompt"):
            mini.processor(mini.image, query)
    bare = mini.processor(mini.image, "", version="chat_old", allow_empty_query=True)
    assert mini.tokenizer.decode(bare.input_ids[0, 19:].tolist()) == "Question:  Answer:"
    assert mini.processor(mini.image, "", version="base", allow_empty_query=True).length == 19


@pytest.mark.parametrize("query", [None, 3, b"x", ["x"]])
def test_query_is_text(mini: SimpleNamespace, query: object) -> None:
    with pytest.raises(InputError, match="must be text"):
        mini.processor(None, query)


@pytest.mark.parametrize("history", [["q", "a"], [("q",)], [("q", None)], [("q", "a", "b")]])
def test_bad_history(mini: SimpleNamespace, history: list) -> None:
    with pytest.raises(InputError, match="Turn 1 of the history"):
        mini.processor(None, "x", history=history, version="chat")


def test_no_tokenizer() -> None:
    processor = Processor(None, image_size=56, image_length=16)
    assert not processor.has_tokenizer
    with pytest.raises(InputError, match=r"without a tokenizer.*--local_tokenizer.*lmsys/vicuna-7b-v1\.5"):
        processor(None, "x")


def test_bad_sizes(mini: SimpleNamespace) -> None:
    with pytest.raises(ConfigError, match="image_size is 0"):
        Processor(mini.tokenizer, image_size=0, image_length=16)
    with pytest.raises(UnknownNameError):
        Processor(mini.tokenizer, image_size=56, image_length=16, version="caht")


def test_training_input_is_checked(mini: SimpleNamespace) -> None:
    with pytest.raises(InputError, match="at least one"):
        mini.processor.training_samples(None, [])
    with pytest.raises(InputError, match="answer of turn 2 is empty"):
        mini.processor.training_samples(None, [("q", "a"), ("q", " ")])
    assert len(mini.processor.training_samples(mini.image, [("", "a caption")], version="base")) == 1


def test_heavy_packages_stay_out() -> None:
    code = (
        "import sys\n"
        "import sat_models.processing.processor, sat_models.processing.boxes, sat_models.processing.drawing\n"
        "heavy = {'sat', 'deepspeed', 'transformers', 'spacy', 'huggingface_hub', 'sentencepiece', 'requests'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
