"""The processor's choices and refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from sat_models.config import SquareImages
from sat_models.errors import ConfigError, InputError, UnknownNameError, ZooError
from sat_models.models.cogvlm.prompts import STYLES
from sat_models.models.families import prompt_styles
from sat_models.processing.layout import MIN_ANSWER_ROOM
from sat_models.processing.processor import LONGEST_TOKEN, Processor
from sat_models.processing.prompts import build_prompt, find_style

IMAGES = SquareImages(side=56, length=16)


def test_versions() -> None:
    assert tuple(STYLES) == ("base", "chat", "vqa", "chat_old")
    with pytest.raises(UnknownNameError, match=r"chat-old.*Did you mean chat_old.*--version"):
        find_style(STYLES, "chat-old")


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
    processor = Processor(None, images=IMAGES, styles=STYLES, version="chat")
    with pytest.raises(InputError, match="without a tokenizer"):
        _ = processor.tokenizer
    with pytest.raises(InputError, match=r"without a tokenizer.*--local_tokenizer.*lmsys/vicuna-7b-v1\.5"):
        processor(None, "x")


def test_bad_sizes(mini: SimpleNamespace) -> None:
    for side, length in ((0, 16), (56, 0)):
        with pytest.raises(ConfigError, match=r"an image of .* must be at least 1\. Check the model's config"):
            Processor(mini.tokenizer, images=SquareImages(side=side, length=length), styles=STYLES, version="chat")
    with pytest.raises(ConfigError, match="max_length is 0"):
        Processor(mini.tokenizer, images=IMAGES, max_length=0, styles=STYLES, version="chat")
    with pytest.raises(UnknownNameError):
        Processor(mini.tokenizer, images=IMAGES, styles=STYLES, version="caht")


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


HALF = "a \ud83d b"


def test_text_that_cannot_be_utf8_is_refused_by_name(mini: SimpleNamespace) -> None:
    for call, named in (
        (lambda: mini.processor(None, HALF), "question holds half"),
        (lambda: mini.processor(None, "x", history=[("q", "a"), ("q", HALF)]), "answer of turn 2 of the history holds"),
        (lambda: mini.processor(None, "x", history=[(HALF, "a")], version="base"), "question of turn 1 of the history"),
        (lambda: mini.processor(None, "x", version=HALF), r"a \\ud83d b"),
        (lambda: mini.processor(HALF, "x"), r"\\ud83d"),
        (lambda: mini.processor.training_samples(None, [("q", HALF)]), "answer of turn 1"),
    ):
        with pytest.raises(ZooError, match=named) as refused:
            call()
        str(refused.value).encode()


def test_a_history_may_be_none_and_is_nothing_but_pairs(mini: SimpleNamespace) -> None:
    none, empty = (mini.processor(None, "x", history=history) for history in (None, []))
    assert torch.equal(none.input_ids, empty.input_ids)
    with pytest.raises(InputError, match="history is 3"):
        mini.processor(None, "x", history=3)


class Counted:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.characters, self.calls = tokenizer, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str) -> list[int]:
        self.characters, self.calls = self.characters + len(text), self.calls + 1
        return self._tokenizer.encode(text)


@pytest.mark.parametrize("version", ["chat", "llava_v1", "glm_en"])
def test_work_grows_with_the_history_no_faster(mini: SimpleNamespace, version: str) -> None:
    """Every turn's beginning was encoded anew, twice: 2000 turns took 96 s before they were refused."""
    counted = Counted(mini.tokenizer)
    processor = Processor(counted, images=IMAGES, max_length=4000, styles=prompt_styles(), version="chat")
    turns = [("How many shapes are there?", "3")] * 100
    text = build_prompt(prompt_styles()[version], "Where?", turns)
    ids = processor(None, "Where?", history=turns, version=version).input_ids
    assert counted.characters == len(text) and ids.shape[1] > 1000
    for many in (700, 20_000):
        counted.characters = 0
        with pytest.raises(InputError, match="The prompt takes"):
            processor(None, "Where?", history=turns[:1] * many, version=version)
        assert counted.characters <= 2 * LONGEST_TOKEN * 4000


def test_a_long_training_dialogue_is_cut_where_it_fits(mini: SimpleNamespace) -> None:
    """By halves, not turn by turn, and the turns kept are the most that fit."""
    counted = Counted(mini.tokenizer)
    processor = Processor(counted, images=IMAGES, max_length=300, styles=STYLES, version="chat")
    turns = [(f"q{number}?", f"answer {number}") for number in range(1000)]
    sample = processor.training_sample(None, turns)
    assert counted.calls < 100

    def length(count: int) -> int:
        return 1 + len(mini.tokenizer.encode(build_prompt(STYLES["chat"], turns[count - 1][0], turns[: count - 1])))

    kept = next(count for count in range(1000, 0, -1) if length(count) <= 300 - MIN_ANSWER_ROOM)
    assert torch.equal(processor.training_sample(None, turns[:kept]).input_ids, sample.input_ids)
