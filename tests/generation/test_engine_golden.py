"""The engine on a miniature, through the real checkpoint loader and processor (its answers: tests/test_parity.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "cogvlm-mini"
CASES = json.loads((GOLDEN / "reference.json").read_text())["cases"]
EOS = 2


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_pretrained(str(GOLDEN), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def engine(vlm: VLM) -> Engine:
    return Engine(
        vlm.model, eos_id=EOS, max_length=vlm.processor.max_length, device=vlm.device,
        tokenizer=vlm.processor.tokenizer,
    )  # fmt: skip


def _inputs(vlm: VLM, case: dict[str, Any]) -> Any:
    return vlm.processor(GOLDEN / "image.png", case["query"], history=case["history"], version=case["version"])


def test_cached_decoding_equals_recomputing(vlm: VLM, engine: Engine) -> None:
    inputs = _inputs(vlm, CASES[0])
    ids = list(engine.tokens(inputs, SamplingOptions(max_new_tokens=6)))
    with torch.inference_mode():
        for length in range(6):
            logits = vlm.model(**_extended(inputs, ids[:length]))[0]
            assert int(logits[0, -1].argmax()) == ids[length]


def _extended(inputs: Any, ids: list[int]) -> dict[str, Any]:
    kwargs, more = inputs.model_kwargs(), torch.tensor([ids], dtype=torch.long)
    last = int(inputs.position_ids[0, -1])
    positions = torch.arange(last + 1, last + 1 + len(ids))[None]
    kwargs["input_ids"] = torch.cat((inputs.input_ids, more), dim=1)
    kwargs["position_ids"] = torch.cat((inputs.position_ids, positions), dim=1)
    for name in ("vision_expert_mask", "image_embed_mask"):
        kwargs[name] = torch.cat((kwargs[name], torch.zeros_like(more)), dim=1)
    return kwargs


def test_text_only_answers(vlm: VLM, engine: Engine) -> None:
    inputs = vlm.processor(None, "Hello", version="chat")
    assert inputs.vision_image is None
    assert len(list(engine.tokens(inputs, SamplingOptions(max_new_tokens=5)))) == 5


def test_a_seed_reproduces_and_the_global_generator_is_untouched(vlm: VLM, engine: Engine) -> None:
    options = SamplingOptions(max_new_tokens=12, temperature=1.5, top_p=0.95, seed=7)
    before = torch.get_rng_state()
    first = list(engine.tokens(_inputs(vlm, CASES[0]), options))
    assert list(engine.tokens(_inputs(vlm, CASES[0]), options)) == first
    assert torch.equal(before, torch.get_rng_state())


def test_training_works_after_generating(engine: Engine) -> None:
    """Nothing made in inference mode stays behind in the model (the rotary table is kept)."""
    vlm = load_pretrained(str(GOLDEN), device="cpu", dtype="float32")
    inputs = _inputs(vlm, CASES[0])
    list(Engine(vlm.model, eos_id=EOS, max_length=256, device="cpu").tokens(inputs, SamplingOptions(max_new_tokens=3)))
    vlm.model.train().requires_grad_(True)
    vlm.model(**inputs.model_kwargs())[0].float().square().mean().backward()
    assert vlm.model.transformer.layers[0].attention.query_key_value.weight.grad is not None
