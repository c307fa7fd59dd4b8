"""Fine-tuning the families beside CogVLM as users do: over one and over two processes, to a merged model."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetune_runs import ROOT, losses, official

from sat_models import runtime
from sat_models.checkpoint.io import save_checkpoint
from sat_models.models.build import build_model
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

sys.path.insert(0, str(ROOT / "tests" / "models"))
from miniatures import GOLDEN, MINIATURES, perturbed

STEPS = 20
IMAGE = GOLDEN / "cogvlm-mini" / "image.png"


def start_of(name: str, place: Path) -> Path:
    """A checkpoint to begin with: a golden folder in its original layout, or a miniature with CogVLM's tokenizer."""
    if (GOLDEN / name / "config.json").is_file():
        return GOLDEN / name
    runtime.init_model_parallel(1)
    mini = next(mini for mini in MINIATURES if mini.name == name)
    config = replace(mini.config, vocab_size=512, max_sequence_length=512)
    torch.manual_seed(1)
    tokenizer = GOLDEN / "cogvlm-mini" / "tokenizer.model"
    model = perturbed(build_model(config, device="cpu"))
    save_checkpoint(model, place / name, config, step=1, tokenizer_file=tokenizer)
    return place / name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("cogvlm2-mini", "chat"),
        ("glm4v-mini", "glm4v"),
        ("internvl-mini", "Hermes-2"),
        ("internvl2-mini", "internlm2-chat"),
        ("internvl3-mini", "internvl2_5"),
        ("xcomposer2-mini", "xcomposer2"),
        ("xcomposer2-4khd-mini", "xcomposer2"),
        ("visualglm-mini", "glm_en"),
        ("llava-tiny", "llava_v1"),
        ("minigpt4-tiny", "minigpt4"),
        ("minigpt4-llama2-tiny", "minigpt4_llama2"),
    ],
)
def test_loss_curves_are_equal_and_the_merged_model_answers(name: str, version: str, tmp_path: Path) -> None:
    start = start_of(name, tmp_path)
    data = tmp_path / "data.jsonl"
    lines = ({"prompt": "What?", "text": f"number {index}", "image": str(IMAGE)} for index in range(8))
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves = {}
    for size in (1, 2):
        # Two processes in both cases: two models with a sample each, or one model with both samples. The answers are
        # equally long, so that the mean of two means is the mean of all tokens.
        out = tmp_path / f"mp{size}"
        run = official(2, size, "", start, version, 480, 10, data, STEPS, STEPS, 0, out, size, "all",
                       "--device", "cpu", "--log_interval", 1, "--learning_rate", 3e-3, "--lora_alpha", 10)  # fmt: skip
        assert run.returncode == 0, run.stderr[-4000:]
        curves[size] = losses(out)
    assert len(curves[1]) == STEPS and curves[1][STEPS] < curves[1][1] - 0.01, "it learns"
    assert curves[2] == pytest.approx(curves[1], abs=2e-4)
    vlm = load_pretrained(tmp_path / "mp2" / "merged", device="cpu", dtype="float32")
    system = "" if version == "xcomposer2" else None  # its chat has a system text that its training has not
    answer = vlm.generate(IMAGE, "What?", max_new_tokens=4, system=system)
    if not answer.token_ids:  # the end is the commonest label of twenty steps; the trained word has become likely, too
        before = load_pretrained(start, device="cpu", dtype="float32")
        assert answer.finish_reason == "stop" and first_word(vlm, system) > max(0.05, 10 * first_word(before, system))


def first_word(vlm: VLM, system: str | None) -> float:
    """The probability that the answer begins as all of the data do."""
    inputs = vlm.processor(IMAGE, "What?", system=system)
    with torch.inference_mode():
        found = vlm.model(**inputs.model_kwargs())[0][0, -1].softmax(-1)
    return found[vlm.processor.tokenizer.encode("number 0")[0]].item()
