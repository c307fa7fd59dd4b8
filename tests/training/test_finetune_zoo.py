"""Fine-tuning VisualGLM, LLaVA and MiniGPT-4 as users do: over one and over two processes, to a merged model."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finetune_runs import ROOT, finetune, losses

from sat_models import runtime
from sat_models.checkpoint.io import save_checkpoint
from sat_models.models.build import build_model
from sat_models.zoo import load_pretrained

sys.path.insert(0, str(ROOT / "tests" / "models"))
from miniatures import GOLDEN, MINIATURES, perturbed

STEPS = 20


@pytest.mark.slow
@pytest.mark.parametrize("name", ["visualglm-mini", "llava-tiny", "minigpt4-tiny", "minigpt4-llama2-tiny"])
def test_loss_curves_are_equal_and_the_merged_model_answers(name: str, tmp_path: Path) -> None:
    runtime.init_model_parallel(1)
    mini = next(mini for mini in MINIATURES if mini.name == name)
    config = replace(mini.config, vocab_size=512, max_sequence_length=512)
    torch.manual_seed(1)
    tokenizer = GOLDEN / "cogvlm-mini" / "tokenizer.model"
    save_checkpoint(
        perturbed(build_model(config, device="cpu")), tmp_path / name, config, step=1, tokenizer_file=tokenizer
    )
    curves = {}
    for processes in (1, 2):
        out = tmp_path / f"mp{processes}"
        run = finetune(
            out, processes=processes, mp=processes, from_pretrained=tmp_path / name, trainable="all", max_length=480,
            train_iters=STEPS, save_interval=STEPS, learning_rate=1e-3,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-4000:]
        curves[processes] = losses(out)
    assert len(curves[1]) == STEPS
    assert curves[2] == pytest.approx(curves[1], abs=2e-4)
    vlm = load_pretrained(tmp_path / "mp2" / "merged", device="cpu", dtype="float32")
    image = GOLDEN / "cogvlm-mini" / "image.png"
    assert vlm.generate(image, "What is it?", max_new_tokens=4).token_ids
