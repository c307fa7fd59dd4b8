"""CogVLM2 gives what the original gives: prompts, masks, logits, answers, losses; its folders come back whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hf_golden import (
    TOLERANCE,
    Reference,
    folders,
    in_processes,
    in_two_processes,
    most_processes,
    same_answers,
    weights_of,
)

from sat_models.checkpoint.convert import convert
from sat_models.errors import ConfigError
from sat_models.models.build import make_config
from sat_models.training.losses import token_loss
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

FIELDS = ("input_ids", "position_ids", "image_embed_mask", "vision_expert_mask")
FOLDERS = folders("cogvlm2")
if not FOLDERS:
    pytest.skip("this golden set holds no cogvlm2-*", allow_module_level=True)


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def asked(reference: Reference, case: dict) -> dict:
    return {
        "image": reference.folder / "image.png" if case["images"] else None,
        "query": case["query"],
        "history": [tuple(turn) for turn in case["history"]],
        "version": case["version"],
    }


def test_prompts_masks_positions_pixels_and_logits(vlm: VLM, reference: Reference) -> None:
    for case in reference.cases:
        given = asked(reference, case)
        inputs = vlm.processor(given["image"], given["query"], history=given["history"], version=given["version"])
        for field in FIELDS:
            wanted = reference.tensors[f"{case['key']}.{field}"]
            found = getattr(inputs, field)
            found = torch.zeros_like(wanted)[None] if found is None else found
            assert found[0].equal(wanted), (case["key"], field)
        if case["images"]:
            assert inputs.vision_image.equal(reference.tensors["pixels.vision"])
        with torch.inference_mode():
            logits = vlm.model(**inputs.model_kwargs())[0][0]
        assert (logits - reference.tensors[f"{case['key']}.logits"]).abs().max() < TOLERANCE


def test_what_goes_into_the_slots(vlm: VLM, reference: Reference) -> None:
    with torch.inference_mode():
        found = vlm.model.get_mixin("eva").encode_images(reference.tensors["pixels.vision"])
    torch.testing.assert_close(found, reference.tensors["features.vision"], atol=TOLERANCE, rtol=0)


def test_answers(vlm: VLM, reference: Reference) -> None:
    for case in reference.cases:
        same_answers(vlm, case, **asked(reference, case))


def test_labels_and_losses(vlm: VLM, reference: Reference) -> None:
    for case in reference.train_cases:
        image = reference.folder / "image.png"
        sample = vlm.processor.training_sample(image, [(case["query"], case["answer"])], version=case["version"])
        assert sample.input_ids[0].equal(reference.tensors[f"{case['key']}.input_ids"])
        assert sample.labels[0].equal(reference.tensors[f"{case['key']}.labels"])
        with torch.no_grad():
            loss, count = token_loss(vlm.model, sample)
        assert (loss / count).item() == pytest.approx(case["loss"], abs=TOLERANCE)


def test_two_processes(folder: Path, tmp_path: Path) -> None:
    """Where two do not divide the tower's heads, each keeps all of it."""
    assert all(worst < TOLERANCE for worst in in_two_processes(folder, tmp_path))


def test_more_processes_than_keys(folder: Path, tmp_path: Path) -> None:
    assert all(worst < TOLERANCE for worst in in_processes(folder, tmp_path, 4))


def test_there_and_back_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    convert(folder, "sat", tmp_path / "sat", size=most_processes(folder, 2))
    convert(tmp_path / "sat", "hf", tmp_path / "hf", verify=True)
    before, after = weights_of(folder), weights_of(tmp_path / "hf")
    assert before.keys() == after.keys() and all(value.equal(after[name]) for name, value in before.items())
    given, written = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "hf"))
    kept = ("architectures", "num_multi_query_heads", "hidden_size", "template_version", "bos_token_id", "vocab_size")
    assert {name: written.get(name) for name in kept if name in given} == {k: given[k] for k in kept if k in given}
    assert (tmp_path / "hf" / "tokenizer.json").is_file() and (tmp_path / "sat" / "tokenizer.json").is_file()


def test_an_answer_from_4_bits(folder: Path, tmp_path: Path) -> None:
    vlm = load_pretrained(folder, device="cpu", dtype="float32", quant=4)
    assert vlm.generate(folder / "image.png", "Where is it?", max_new_tokens=4).finish_reason in ("length", "stop")


def test_a_grid_that_the_convolution_does_not_cut(folder: Path) -> None:
    data = load_pretrained(folder, device="cpu").config.to_dict()
    with pytest.raises(ConfigError, match="2 x 2 of the tower's"):
        make_config({**data, "image_length": data["image_length"] + 1})
