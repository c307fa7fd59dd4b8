"""VisualGLM against the original's outputs: answers, positions, masks, batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sat_models.config import ImagePlan, read_json
from sat_models.errors import ConfigError
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.models.visualglm.config import ChatGLMConfig, VisualGLMConfig
from sat_models.processing.layout import VLMInputs, collate, layout_prompt, layout_training
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

MINI = Path(__file__).resolve().parents[1] / "golden" / "visualglm-mini"
GOLDEN = load_file(MINI / "reference.safetensors")
CASES = json.loads((MINI / "reference.json").read_text())["cases"]
IMAGE_LENGTH, EOS = 32, 505


@pytest.fixture(scope="module")
def vlm() -> VLM:
    """The miniature, through the front door."""
    return load_pretrained(MINI, device="cpu", dtype="float32")


def inputs_of(vlm: VLM, case: dict[str, Any]) -> VLMInputs:
    """A golden case, laid out from its text ids alone."""
    ids = GOLDEN[f"{case['key']}.input_ids"].tolist()
    pictures = int(case["image"])
    start = case["pre_image"]
    lead = [ids[:start], vlm.config.images.plan()] * pictures
    text = ids[start + pictures * IMAGE_LENGTH : -2]
    layout = layout_prompt([*lead, text], bos_id=0, form=vlm.config.sequence_form)
    return VLMInputs.from_layout(layout, vision_image=GOLDEN["pixels.vision"] if pictures else None)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_the_layout_is_the_originals(vlm: VLM, case: dict[str, Any]) -> None:
    inputs, key = inputs_of(vlm, case), case["key"]
    assert torch.equal(inputs.input_ids[0], GOLDEN[f"{key}.input_ids"])
    assert torch.equal(inputs.position_ids[0], GOLDEN[f"{key}.position_ids"])
    assert torch.equal(inputs.attention_mask[0, 0].float(), GOLDEN[f"{key}.attention_mask"])
    assert inputs.vision_expert_mask is None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_answers_are_the_originals(vlm: VLM, case: dict[str, Any]) -> None:
    engine = Engine(vlm.model, eos_id=EOS, max_length=128, device="cpu")
    options = SamplingOptions(max_new_tokens=len(case["generated"]))
    expected = [token for token in case["generated"] if token != EOS]
    inputs = inputs_of(vlm, case)
    assert list(engine.tokens(inputs, options)) == expected
    inputs.attention_mask = None  # the model knows it from the positions
    assert list(engine.tokens(inputs, options)) == expected


def test_positions_are_found_from_the_ids(vlm: VLM) -> None:
    ids, key = GOLDEN["case2.input_ids"][None], "case2"
    assert torch.equal(vlm.model.default_positions(ids)[0], GOLDEN[f"{key}.position_ids"])
    with pytest.raises(ValueError, match=r"no <sop> \(504\)"):
        vlm.model(torch.tensor([[5, 6, 7]]))
    with pytest.raises(ValueError, match=r"no \[gMASK\] \(501\) or \[MASK\] \(500\)"):
        vlm.model(torch.tensor([[5, 6, 504]]))
    assert vlm.model.default_positions(torch.tensor([[5, 500, 6, 504, 9]])).tolist() == [
        [[0, 1, 2, 1, 1], [0, 0, 0, 1, 2]]
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_two_lengths(vlm: VLM, side: str) -> None:
    samples = [inputs_of(vlm, case) for case in CASES[:2]]
    batch = collate(samples, vlm.config.pad_token_id, side=side)
    with torch.inference_mode():
        logits = vlm.model(**batch.model_kwargs())[0]
    assert torch.isfinite(logits).all()
    for row, (sample, case) in enumerate(zip(samples, CASES[:2], strict=True)):
        own = slice(-sample.length, None) if side == "left" else slice(0, sample.length)
        torch.testing.assert_close(logits[row, own], GOLDEN[f"{case['key']}.logits"], atol=2e-5, rtol=0)


def test_a_training_sample(vlm: VLM) -> None:
    form = vlm.config.sequence_form
    image = ImagePlan(length=4, canvas=(8, 8))
    layout = layout_training([[5, 6], image, [7, 8]], [20, 21], bos_id=0, eos_id=EOS, max_length=40, form=form)
    assert layout.input_ids.tolist() == [5, 6, 3, 3, 3, 3, 7, 8, 501, 504, 20, 21, EOS]
    assert layout.labels.tolist() == [-100] * 10 + [20, 21, EOS]
    assert layout.position_ids.tolist() == [[*range(9), 8, 8, 8, 8], [0] * 9 + [1, 2, 3, 4]]
    assert layout.attention_mask[0].tolist() == [1] * 9 + [0] * 4
    assert layout.attention_mask[10].tolist() == [1] * 11 + [0] * 2


def test_sizes_that_contradict_each_other_are_refused() -> None:
    data = read_json(MINI / "model_config.json")
    assert VisualGLMConfig.from_dict(data).to_dict()["qformer_args"]["proj_size"] == 64
    for change, message in (
        ({"image_length": 31}, "the Q-Former has 32 queries"),
        ({"gmask_token_id": 512}, "gmask_token_id = 512 is outside"),
        ({"layernorm_order": "pre"}, "layernorm_order = 'pre' is not supported"),
        ({"qformer_args": {**data["qformer_args"], "cross_attn_hidden_size": 40}}, "the tower .eva_args. is 48 wide"),
        ({"qformer_args": {**data["qformer_args"], "proj_size": 60}}, "proj_size is 60"),
        ({"qformer_args": {**data["qformer_args"], "is_decoder": [True]}}, "qformer_args.is_decoder must say for each"),
        ({"eva_args": {**data["eva_args"], "layernorm_order": "post"}}, "this tower has 'pre'"),
    ):
        with pytest.raises(ConfigError, match=message):
            VisualGLMConfig.from_dict({**data, **change})
    with pytest.raises(ConfigError, match="model-parallel size 3 does not divide num_attention_heads = 4"):
        ChatGLMConfig.from_dict(
            {key: data[key] for key in data if key.endswith(("_id", "_size")) or key.startswith("num")}
            | {"max_sequence_length": 9}
        ).check_model_parallel(3)
