"""Each model beside CogVLM answers in text through the front door: alone, streamed, and in a batch."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sat_models import runtime
from sat_models.checkpoint.io import save_checkpoint
from sat_models.models.build import build_model
from sat_models.models.families import family_of
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

sys.path.insert(0, str(Path(__file__).parent))
from miniatures import GOLDEN, MINIATURES, perturbed

TOKENIZER = GOLDEN / "cogvlm-mini" / "tokenizer.model"
IMAGE = GOLDEN / "cogvlm-mini" / "image.png"
NAMES = ("visualglm-mini", "llava-tiny", "minigpt4-tiny", "minigpt4-llama2-tiny")


@pytest.fixture(scope="module", params=NAMES)
def vlm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VLM:
    """A tiny model with a vocabulary for the miniature tokenizer, saved and loaded."""
    mini = next(mini for mini in MINIATURES if mini.name == request.param)
    runtime.init_model_parallel(1)
    config = replace(mini.config, vocab_size=512, max_sequence_length=512)
    torch.manual_seed(1)
    model = perturbed(build_model(config, device="cpu"))
    folder = tmp_path_factory.mktemp("answers") / mini.name
    save_checkpoint(model, folder, config, step=1, tokenizer_file=TOKENIZER)
    return load_pretrained(folder, device="cpu", dtype="float32")


def test_the_saved_config_says_what_the_model_is(vlm: VLM) -> None:
    data = json.loads((vlm.checkpoint.folder / "model_config.json").read_text())
    assert data["model_class"] == type(vlm.model).__name__
    assert vlm.processor.version == vlm.config.DEFAULT_VERSION
    assert vlm.processor.form == vlm.config.sequence_form


def test_the_page_offers_the_styles_of_the_family(vlm: VLM) -> None:
    gradio = pytest.importorskip("gradio")
    from sat_models.serving.core import ServerCore
    from sat_models.serving.web import Site
    from sat_models.serving.web_chat import Page
    from sat_models.serving.web_texts import WORDS

    core = ServerCore(vlm, vlm.engine(), names=["tiny"])
    core.scheduler.close()
    blocks = Site(Page(core)).build().blocks.values()
    (choice,) = [b for b in blocks if isinstance(b, gradio.Dropdown) and b.label == WORDS["english"]["version"]]
    family = family_of(vlm.config.model_class)
    assert {value for _, value in choice.choices} == set(family.styles) and choice.value == vlm.processor.version
    for version in vlm.versions:
        assert vlm.generate(IMAGE, "What?", version=version, max_new_tokens=1).token_ids


def test_an_answer_streamed_is_the_answer(vlm: VLM) -> None:
    history = [("Who is it?", "A dog.")]
    result = vlm.generate(IMAGE, "What?", history, max_new_tokens=8)
    assert 0 < len(result.token_ids) <= 8
    assert "".join(vlm.stream(IMAGE, "What?", history, max_new_tokens=8)) == result.text
    assert vlm.generate(None, "What?", max_new_tokens=3).token_ids


def test_a_batch_answers_as_one_by_one(vlm: VLM) -> None:
    queries = ["What?", "Where is the small dog?", "Who?"]
    images = [IMAGE, IMAGE, None]
    alone = [vlm.generate(image, query, max_new_tokens=6) for image, query in zip(images, queries, strict=True)]
    together = vlm.generate_batch(images, queries, max_new_tokens=6)
    assert [result.token_ids for result in together] == [result.token_ids for result in alone]
