"""InternLM-XComposer2 in use: the server, fast steps, training data with images in any place, estimates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hf_golden import folders, same_through_a_server
from PIL import Image

from mixins.kv_cache import kv_cache
from sat_models.generation.steps.flat import TokenStep
from sat_models.generation.steps.kernels import KernelStep
from sat_models.generation.steps.native import load
from sat_models.training.data import VLMDataset
from sat_models.training.formats import read_records
from sat_models.training.memory import estimate_memory
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

FOLDERS = [*folders("xcomposer2"), *folders("xcomposer2-4khd")]
if not FOLDERS:
    pytest.skip("this golden set holds no xcomposer2-*", allow_module_level=True)
WIDE, TALL = Image.new("RGB", (210, 60), "teal"), Image.new("RGB", (50, 120), "olive")


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: path.name)
def vlm(request: pytest.FixtureRequest) -> VLM:
    return load_pretrained(request.param, device="cpu", dtype="float32")


def test_the_server_answers_as_each_alone(vlm: VLM) -> None:
    asked = [
        ([WIDE], "What is it?", []),
        ([], "Who are you?", [("Hello.", "Hello!")]),
        ([TALL, WIDE], "<ImageHere>And <ImageHere>?", []),
        ([TALL], "Why?", [("<ImageHere>Where?", "Left.")]),
    ]
    same_through_a_server(vlm, asked, 6)


def test_a_token_goes_through_the_bare_weights_of_a_llama(vlm: VLM) -> None:
    with kv_cache(vlm.model, 0):
        flat = TokenStep.of(vlm.model)
        assert flat is not None and flat.heads == vlm.config.heads
        assert load() is None or KernelStep.of(flat) is not None


def test_training_data_in_the_originals_form(vlm: VLM, tmp_path: Path) -> None:
    """Images stand where `<ImageHere>` does, in any turn; one whose turn is cut off goes with it."""
    files = [str(tmp_path / name) for name in ("wide.png", "tall.png")]
    WIDE.save(files[0])
    TALL.save(files[1])
    said, roles = [("<ImageHere>One.", "A."), ("Two <ImageHere> here.", "B.")], ("user", "assistant")
    talk = [{"from": role, "value": text} for turn in said for role, text in zip(roles, turn, strict=True)]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "0", "image": files, "conversations": talk}]))
    dataset = VLMDataset(read_records(tmp_path / "data.json"), vlm.processor)
    wanted = vlm.processor.training_sample(files, said)
    assert dataset[0].input_ids.equal(wanted.input_ids) and dataset[0].labels.equal(wanted.labels)
    assert int(dataset[0].image_embed_mask[0].diff().abs().sum()) == 4, "two images apart"
    first = vlm.processor.training_sample(files[0], said[:1])
    cut = vlm.processor.training_sample(files, said, max_length=first.length + 12)
    assert cut.input_ids.equal(first.input_ids) and len(cut.vision_image) == 1


@pytest.mark.parametrize("folder", folders("xcomposer2-4khd"), ids=lambda path: path.name)
def test_the_memory_of_training_grows_with_tiles(folder: Path) -> None:
    vlm = load_pretrained(folder, device="cpu", dtype="float32")
    vlm.model.requires_grad_(True)
    found = [
        estimate_memory(
            vlm.model, vlm.config, batch_size=1, length=300, precision="fp32", zero_stage=0, data_parallel=1,
            images=vlm.processor.plans(WIDE, most),
        ).total
        for most in (1, 6, 25)
    ]  # fmt: skip
    assert found == sorted(set(found))
