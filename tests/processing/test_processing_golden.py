"""Prompts, token ids, masks, positions, labels and pixels equal the originals' exactly."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from sat_models.models.cogvlm.prompts import STYLES
from sat_models.processing.image import load_image
from sat_models.processing.layout import collate, layout_prompt
from sat_models.processing.pixels import image_to_tensor
from sat_models.processing.prompts import build_prompt

FIELDS = ("input_ids", "position_ids", "image_embed_mask", "vision_expert_mask")


def test_prompt_strings(golden: SimpleNamespace) -> None:
    cases = golden.reference["cases"]
    assert {case["version"] for case in cases} == set(STYLES)
    for case in cases:
        assert "<EOI>" + build_prompt(STYLES[case["version"]], case["query"], case["history"]) == case["prompt"]


def test_inference_inputs(golden: SimpleNamespace) -> None:
    for case in golden.reference["cases"]:
        inputs = golden.processor(golden.image, case["query"], history=case["history"], version=case["version"])
        for field in FIELDS:
            expected = golden.tensors[f"{case['key']}.{field}"]
            assert torch.equal(getattr(inputs, field)[0], expected), (case["key"], field)
        assert inputs.attention_mask is None and inputs.labels is None


def test_rope_mask(golden: SimpleNamespace) -> None:
    tokenizer = golden.tokenizer
    for case in golden.reference["cases"]:
        ids = tokenizer.encode(case["prompt"].removeprefix("<EOI>"))
        layout = layout_prompt(ids, golden.image_length, bos_id=tokenizer.bos_id)
        assert torch.equal(layout.image_rope_mask, golden.tensors[f"{case['key']}.image_rope_mask"])


def test_training_samples(golden: SimpleNamespace) -> None:
    for case in golden.reference["train_cases"]:
        (sample,) = golden.processor.training_samples(
            golden.image,
            [(case["prompt"], case["answer"])],
            version=case["version"],
            max_length=case["max_length"],
        )
        batch = collate([sample], golden.tokenizer.pad_id, case["max_length"])
        for field in (*FIELDS, "labels"):
            expected = golden.tensors[f"{case['key']}.{field}"]
            assert torch.equal(getattr(batch, field), expected), (case["key"], field)


def test_pad_id(golden: SimpleNamespace) -> None:
    assert golden.tokenizer.pad_id == golden.reference["pad_token_id"] == len(golden.tokenizer)


def test_pixels(golden: SimpleNamespace) -> None:
    image = load_image(golden.image)
    for name in ("vision", "cross"):
        expected = golden.tensors.get(f"pixels.{name}")
        if expected is not None:
            got = image_to_tensor(image, expected.shape[-1])
            torch.testing.assert_close(got[None], expected, rtol=0, atol=0)
    inputs = golden.processor(golden.image, "x")
    assert torch.equal(inputs.vision_image, golden.tensors["pixels.vision"])
    assert (inputs.cross_image is not None) == ("pixels.cross" in golden.tensors)


def test_decoded_text(golden: SimpleNamespace) -> None:
    for case in golden.reference["cases"]:
        assert golden.tokenizer.decode(case["generated"]) == case["text"]
        stream = golden.tokenizer.stream()
        assert "".join(map(stream.push, case["generated"])) + stream.flush() == case["text"]
