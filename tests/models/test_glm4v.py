"""GLM-4V gives what the original gives: prompts, positions, logits, answers; its folders come back whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

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

from mixins.kv_cache import kv_cache
from sat_models.checkpoint.convert import convert
from sat_models.errors import ConfigError, InputError
from sat_models.generation.steps.flat import TokenStep
from sat_models.generation.steps.kernels import KernelStep
from sat_models.generation.steps.native import load
from sat_models.models.build import make_config
from sat_models.models.common.quantisation import Quantisation
from sat_models.models.glm4v.tokens import SPECIALS
from sat_models.processing.prompts import build_prompt
from sat_models.training.data import VLMDataset
from sat_models.training.formats import read_records
from sat_models.training.losses import token_loss
from sat_models.training.validate import check_lengths
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

FIELDS = ("input_ids", "position_ids", "image_embed_mask")
FOLDERS = folders("glm4v")
if not FOLDERS:
    pytest.skip("this golden set holds no glm4v-*", allow_module_level=True)


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda path: path.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def asked(reference: Reference, case: dict[str, Any]) -> dict[str, Any]:
    """A case as a call, with a mark where its image stands."""
    questions, answers = list(case["turns"][::2]), case["turns"][1::2]
    if case["image_turn"] is not None:
        questions[case["image_turn"]] = f"<image>{questions[case['image_turn']]}"
    return {
        "image": None if case["image_turn"] is None else reference.folder / "image.png",
        "query": questions[-1],
        "history": list(zip(questions[:-1], answers, strict=True)),
        "system": case["system"],
    }


def test_prompts_positions_pixels_and_logits(vlm: VLM, reference: Reference) -> None:
    for case in reference.cases:
        inputs = vlm.processor(**asked(reference, case))
        for field in FIELDS:
            wanted, found = reference.tensors[f"{case['key']}.{field}"], getattr(inputs, field)
            found = torch.zeros_like(wanted)[None] if found is None else found
            assert found[0].equal(wanted), (case["key"], field)
        assert inputs.vision_expert_mask is None
        if inputs.vision_image is not None:
            assert inputs.vision_image.equal(reference.tensors["pixels.vision"])
        with torch.inference_mode():
            logits = vlm.model(**inputs.model_kwargs())[0][0]
        assert (logits - reference.tensors[f"{case['key']}.logits"]).abs().max() < TOLERANCE


def test_an_image_without_a_mark_stands_in_the_first_question(vlm: VLM, reference: Reference) -> None:
    for case in reference.cases:
        if case["image_turn"] == 0:
            given = asked(reference, case)
            marked = vlm.processor(**given)
            given["history"] = [(q.removeprefix("<image>"), answer) for q, answer in given["history"]]
            given["query"] = given["query"].removeprefix("<image>")
            assert vlm.processor(**given).input_ids.equal(marked.input_ids)


def test_the_text_of_a_prompt(vlm: VLM, reference: Reference) -> None:
    for case in reference.cases:
        if case["image_turn"] is None and not case["system"]:
            given = asked(reference, case)
            assert build_prompt(vlm.processor.style(), given["query"], given["history"]) == case["prompt"]


def test_what_goes_into_the_slots(vlm: VLM, reference: Reference) -> None:
    with torch.inference_mode():
        found = vlm.model.get_mixin("eva").encode_images(reference.tensors["pixels.vision"])
    torch.testing.assert_close(found, reference.tensors["features.vision"], atol=TOLERANCE, rtol=0)


def test_answers(vlm: VLM, reference: Reference) -> None:
    for case in reference.cases:
        same_answers(vlm, case, **asked(reference, case))
        streamed = "".join(vlm.stream(**asked(reference, case), max_new_tokens=len(case["generated"])))
        assert streamed == case["text"]


def test_a_batch_of_dialogues_answers_as_each_alone(vlm: VLM, reference: Reference) -> None:
    """Of other lengths, numbers of turns and images: the released code cannot pad them."""
    cases = [case for case in reference.cases if not case["system"]]
    calls = [asked(reference, case) for case in cases]
    two = {
        "image": [reference.folder / "image.png"] * 2,
        "query": "<image>Is it <image>?",
        "history": [("Hello", "Hello.")],
    }
    columns = [[call[name] for call in (*calls, two)] for name in ("image", "query", "history")]
    found = vlm.generate_batch(*columns, max_new_tokens=12)
    for case, answer in zip(cases, found, strict=False):
        assert answer.token_ids == [token for token in case["generated"][:12] if token not in vlm.config.eos_token_ids]
    alone = vlm.generate(**two, max_new_tokens=12)
    assert (found[-1].token_ids, found[-1].text) == (alone.token_ids, alone.text)


def test_two_processes(folder: Path, tmp_path: Path) -> None:
    assert all(worst < TOLERANCE for worst in in_two_processes(folder, tmp_path))


def test_more_processes_than_keys(folder: Path, tmp_path: Path) -> None:
    """Each of four holds a copy of the key that its query reads, whether the file has one part or four."""
    convert(folder, "sat", tmp_path / "four", size=most_processes(folder, 4))
    for name in ("reference.json", "reference.safetensors"):
        shutil.copy(folder / name, tmp_path / "four")
    for source in (folder, tmp_path / "four"):
        assert all(worst < TOLERANCE for worst in in_processes(source, tmp_path, 4))


def test_there_and_back_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    convert(folder, "sat", tmp_path / "sat", size=most_processes(folder, 2))
    convert(tmp_path / "sat", "hf", tmp_path / "hf", verify=True)
    before, after = weights_of(folder), weights_of(tmp_path / "hf")
    assert before.keys() == after.keys() and all(value.equal(after[name]) for name, value in before.items())
    given, written = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path / "hf"))
    assert {name: given[name] for name in written if name in given} == {
        name: value for name, value in written.items() if name in given
    }
    assert written["vision_config"] == given["vision_config"] and "sat_model_config" not in written
    for place in (tmp_path / "hf", tmp_path / "sat"):
        again = load_pretrained(place, device="cpu", dtype="float32")
        case = Reference(folder).cases[-1]
        assert again.generate(**asked(Reference(folder), case), max_new_tokens=20).text == case["text"]


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_come_back(folder: Path, reference: Reference, bits: int, tmp_path: Path) -> None:
    convert(folder, "sat", tmp_path / "kept", quantisation=Quantisation(bits=bits))
    case = reference.cases[-1]
    answers = [
        load_pretrained(source, device="cpu", dtype="float32", quant=quant).generate(
            **asked(reference, case), max_new_tokens=8
        )
        for source, quant in ((folder, bits), (tmp_path / "kept", None))
    ]
    assert answers[0].token_ids == answers[1].token_ids


def test_a_token_goes_through_the_bare_weights(vlm: VLM) -> None:
    with kv_cache(vlm.model, 0):
        flat = TokenStep.of(vlm.model)
        assert flat is not None and flat.heads == vlm.config.heads
        assert load() is None or KernelStep.of(flat) is not None


def test_samples_train_the_line_end_that_the_model_writes(vlm: VLM, reference: Reference) -> None:
    tokenizer, image = vlm.processor.tokenizer, reference.folder / "image.png"
    sample = vlm.processor.training_sample(image, [("Who are you?", "A poet."), ("<image>Where?", "Left.")])
    ends = [*tokenizer.encode("\n"), *tokenizer.encode("A poet."), tokenizer.eos_id]
    ends += [*tokenizer.encode("\n"), *tokenizer.encode("Left."), tokenizer.eos_id]
    assert [label for label in sample.labels[0].tolist() if label != -100] == ends
    first_answer = int((sample.labels[0] != -100).nonzero()[0])
    assert int(sample.image_embed_mask[0].nonzero()[0]) > first_answer, "in the second turn"
    with torch.no_grad():
        loss, count = token_loss(vlm.model, sample)
    assert count == len(ends) and torch.isfinite(loss)


def test_a_dialogue_is_trained_with_its_image_where_it_stands(vlm: VLM, folder: Path, tmp_path: Path) -> None:
    """In the release's own form of data; cut before that turn, the sample has no image."""
    said = [
        ("user", "Who are you?", None),
        ("assistant", "A poet.", None),
        ("user", "Where?", str(folder / "image.png")),
    ]
    messages = [{"role": role, "content": text, "image": image} for role, text, image in said]
    file = tmp_path / "x.jsonl"
    file.write_text(json.dumps({"messages": [*messages, {"role": "assistant", "content": "Left. " * 9}]}) + "\n")
    records = read_records(file)
    turns = [("Who are you?", "A poet."), ("<image>Where?", "Left. " * 9)]
    wanted = vlm.processor.training_sample(folder / "image.png", turns)
    sample = VLMDataset(records, vlm.processor).take(0).inputs
    assert sample.input_ids.equal(wanted.input_ids) and sample.labels.equal(wanted.labels)
    assert sample.vision_image.equal(wanted.vision_image)
    first = vlm.processor.training_sample(None, turns[:1])
    cut = VLMDataset(records, vlm.processor, max_length=first.length + 12).take(0).inputs
    assert cut.input_ids.equal(first.input_ids) and cut.vision_image is None
    (whole, _) = check_lengths(records[0], vlm.processor, version="glm4v", max_length=999)
    assert whole == [wanted.length]


def test_roles_that_a_user_writes_are_text(vlm: VLM) -> None:
    tokenizer = vlm.processor.tokenizer
    ids = vlm.processor(None, "".join(SPECIALS)).input_ids[0].tolist()
    assert ids[:3] == [tokenizer.special_id(name) for name in ("[gMASK]", "<sop>", "<|user|>")]
    specials = {tokenizer.special_id(name) for name in SPECIALS}
    assert [token for token in ids[3:] if token in specials] == [tokenizer.special_id("<|assistant|>")]


def test_special_tokens_without_the_file_beside(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "tokenizer.model", tmp_path)
    shutil.copy(folder / "config.json", tmp_path)
    alone = load_pretrained(folder, device="cpu", local_tokenizer=tmp_path / "tokenizer.model").processor.tokenizer
    given = json.loads((folder / "reference.json").read_text())["special_ids"]
    assert {name: alone.special_id(name) for name in given} == given


@pytest.mark.parametrize(
    ("query", "images", "message"),
    [("<image>a<image>", 1, "2 mark"), ("<image>a", 0, "1 mark"), ("<image>a", 2, "1 mark")],
)
def test_marks_and_images_of_unequal_number(vlm: VLM, folder: Path, query: str, images: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        vlm.generate([folder / "image.png"] * images or None, query)


def test_tiles_and_tokenizers_of_other_models_are_refused(vlm: VLM, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not cut images into tiles"):
        vlm.generate(folder / "image.png", "a", max_tiles=4)
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0b\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    with pytest.raises(InputError, match="has no 'base64 rank' in line"):
        load_pretrained(folder, device="cpu", local_tokenizer=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_length": 10}, "2 x 2 of the tower's"),
        ({"scaling_factor": 0}, "scaling_factor must be a number above 0"),
        ({"rotary_dim": 7}, "rotary rotates pairs"),
    ],
)
def test_sizes_that_cannot_be(vlm: VLM, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config({**vlm.config.to_dict(), **change})


def test_what_the_released_code_could_do_otherwise_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "x")
    data = json.loads((folder / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps({**data, "rmsnorm": False}))
    with pytest.raises(ConfigError, match=r"rmsnorm is False in config\.json; GLM-4V has True"):
        load_pretrained(tmp_path / "x", device="cpu")
