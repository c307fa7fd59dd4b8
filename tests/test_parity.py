"""The originals' outputs, on whichever golden set is held against the code (see golden_set.py): all numbers are theirs.

Ids, positions, masks, labels and pixels are equal; logits within what the originals' own parallel sizes differ by.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from golden_set import each_case, each_folder, reference, tensors, twin

from sat_models.errors import InputError
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.processing.image import load_image
from sat_models.processing.inputs import VLMInputs
from sat_models.processing.layout import collate, layout_prompt
from sat_models.processing.pixels import image_to_tensor
from sat_models.processing.prompts import build_prompt
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

TOLERANCE = 2e-5
WITH_TEXT = ("cogvlm", "cogagent")
FAMILIES = (*WITH_TEXT, "visualglm")
FIELDS = ("input_ids", "position_ids", "image_embed_mask", "vision_expert_mask")


@functools.cache
def vlm_of(folder: Path) -> VLM:
    """A folder's model, through the front door."""
    return load_pretrained(folder, device="cpu", dtype="float32")


def laid_out(vlm: VLM, folder: Path, case: dict[str, Any]) -> VLMInputs:
    """A case of VisualGLM, whose set has ids and no tokenizer, laid out from its text alone."""
    golden, form, plan = tensors(folder), vlm.config.sequence_form, vlm.config.images.plan()
    ids = golden[f"{case['key']}.input_ids"].tolist()
    images, start = int(case["image"]), case["pre_image"]
    text = ids[start + images * plan.length : len(ids) - len(form.suffix)]
    layout = layout_prompt([*[ids[:start], plan] * images, text], bos_id=None, form=form)
    return VLMInputs.from_layout(layout, vision_image=golden["pixels.vision"] if images else None)


def inputs_of(vlm: VLM, folder: Path, case: dict[str, Any]) -> VLMInputs:
    """A case as our processor makes it."""
    if "query" not in case:
        return laid_out(vlm, folder, case)
    return vlm.processor(folder / "image.png", case["query"], history=case["history"], version=case["version"])


def logits_of(vlm: VLM, folder: Path, case: dict[str, Any]) -> Tensor:
    """Logits [S, V] of a case's own arrays."""
    golden, key = tensors(folder), case["key"]
    given = {name: golden[f"{key}.{name}"][None] for name in FIELDS if f"{key}.{name}" in golden}
    if "image_embed_mask" not in given:
        given["image_embed_mask"] = inputs_of(vlm, folder, case).image_embed_mask
    if given["image_embed_mask"].any():
        pixels = {"vision_image": "pixels.vision", "cross_image": "pixels.cross"}
        given |= {name: golden[key] for name, key in pixels.items() if key in golden}
    with torch.inference_mode():
        return vlm.model(**given)[0][0]


@each_case(*FAMILIES)
def test_what_a_model_reads_is_the_originals(folder: Path, case: dict[str, Any]) -> None:
    golden, inputs = tensors(folder), inputs_of(vlm_of(folder), folder, case)
    for field in (*FIELDS, "attention_mask"):
        expected, got = golden.get(f"{case['key']}.{field}"), getattr(inputs, field)
        if expected is not None:
            assert torch.equal(got.view(expected.shape).to(expected.dtype), expected), field
    assert inputs.labels is None
    if "prompt" in case:
        text = build_prompt(vlm_of(folder).processor.style(case["version"]), case["query"], case["history"])
        assert "<EOI>" + text == case["prompt"]


@each_case(*WITH_TEXT)
def test_the_shared_position_is_the_originals(folder: Path, case: dict[str, Any]) -> None:
    vlm = vlm_of(folder)
    ids = vlm.processor.tokenizer.encode(case["prompt"].removeprefix("<EOI>"))
    layout = layout_prompt([vlm.config.images.plan(), ids], bos_id=vlm.processor.tokenizer.bos_id)
    assert torch.equal(layout.image_rope_mask, tensors(folder)[f"{case['key']}.image_rope_mask"])


@each_case(*FAMILIES)
def test_logits_are_the_originals(folder: Path, case: dict[str, Any]) -> None:
    expected = tensors(folder)[f"{case['key']}.logits"]
    torch.testing.assert_close(logits_of(vlm_of(folder), folder, case), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("form", ["hf", "mp2"])
@each_folder(*FAMILIES)
def test_the_same_weights_in_another_form(folder: Path, form: str, tmp_path: Path) -> None:
    vlm = load_pretrained(twin(folder, form, tmp_path), device="cpu", dtype="float32")
    for case in reference(folder)["cases"]:
        expected = tensors(folder)[f"{case['key']}.logits"]
        torch.testing.assert_close(logits_of(vlm, folder, case), expected, atol=TOLERANCE, rtol=0)


@each_case(*FAMILIES)
def test_greedy_answers_are_the_originals(folder: Path, case: dict[str, Any]) -> None:
    vlm, said = vlm_of(folder), case["generated"]
    ends = vlm.config.eos_token_ids
    engine = Engine(vlm.model, eos_id=ends, max_length=vlm.config.max_sequence_length, device="cpu")
    tokens = engine.tokens(inputs_of(vlm, folder, case), SamplingOptions(max_new_tokens=len(said)))
    assert list(tokens) == [token for token in said if token not in ends]
    assert tokens.finish_reason == ("stop" if said[-1] in ends else "length")


@each_case("visualglm")
def test_the_mask_is_known_from_the_positions(folder: Path, case: dict[str, Any]) -> None:
    vlm, said = vlm_of(folder), case["generated"]
    inputs, ends = inputs_of(vlm, folder, case), vlm.config.eos_token_ids
    assert inputs.attention_mask is not None
    inputs.attention_mask = None
    engine = Engine(vlm.model, eos_id=ends, max_length=vlm.config.max_sequence_length, device="cpu")
    tokens = engine.tokens(inputs, SamplingOptions(max_new_tokens=len(said)))
    assert list(tokens) == [token for token in said if token not in ends]


@pytest.mark.parametrize("side", ["left", "right"])
@each_folder(*FAMILIES)
def test_a_batch_of_two_lengths(folder: Path, side: str) -> None:
    vlm, golden, cases = vlm_of(folder), tensors(folder), reference(folder)["cases"][:2]
    samples = [inputs_of(vlm, folder, case) for case in cases]
    batch = collate(samples, vlm.config.pad_token_id, side=side)
    with torch.inference_mode():
        logits = vlm.model(**batch.model_kwargs())[0]
    assert torch.isfinite(logits).all()
    for row, (sample, case) in enumerate(zip(samples, cases, strict=True)):
        own = slice(-sample.length, None) if side == "left" else slice(0, sample.length)
        torch.testing.assert_close(logits[row, own], golden[f"{case['key']}.logits"], atol=TOLERANCE, rtol=0)


@each_case(*WITH_TEXT)
def test_answers_as_text(folder: Path, case: dict[str, Any]) -> None:
    vlm = vlm_of(folder)
    asked = (folder / "image.png", case["query"], case["history"], case["version"])
    answer = vlm.generate(*asked, max_new_tokens=len(case["generated"]))
    assert answer.text == case["text"] == "".join(vlm.stream(*asked, max_new_tokens=len(case["generated"])))
    assert answer.token_ids == [token for token in case["generated"] if token not in vlm.config.eos_token_ids]
    assert answer.finish_reason == ("stop" if case["generated"][-1] in vlm.config.eos_token_ids else "length")
    stream = vlm.processor.tokenizer.stream()
    assert "".join(map(stream.push, case["generated"])) + stream.flush() == case["text"]


@each_case(*WITH_TEXT, kind="train_cases")
def test_training_samples_are_the_originals(folder: Path, case: dict[str, Any]) -> None:
    processor, golden = vlm_of(folder).processor, tensors(folder)
    given = {"version": case["version"], "max_length": case["max_length"]}
    turns = [(case["prompt"], case["answer"])]
    if case.get("is_none"):
        with pytest.raises(InputError, match="max_length"):
            processor.training_samples(folder / "image.png", turns, **given)
        return
    (sample,) = processor.training_samples(folder / "image.png", turns, **given)
    batch = collate([sample], processor.tokenizer.pad_id, case["max_length"])
    for field in (*FIELDS, "labels"):
        assert torch.equal(getattr(batch, field), golden[f"{case['key']}.{field}"]), field


@each_folder(*WITH_TEXT)
def test_pixels_and_padding_are_the_originals(folder: Path) -> None:
    processor, golden = vlm_of(folder).processor, tensors(folder)
    inputs = processor(folder / "image.png", "x")
    for name, got in {"pixels.vision": inputs.vision_image, "pixels.cross": inputs.cross_image}.items():
        assert (got is None) == (name not in golden)
        if got is not None:
            assert torch.equal(got, golden[name])
            alone = image_to_tensor(load_image(folder / "image.png"), golden[name].shape[-1])
            assert torch.equal(alone[None], golden[name])
    assert processor.tokenizer.pad_id == reference(folder)["pad_token_id"] == len(processor.tokenizer)
