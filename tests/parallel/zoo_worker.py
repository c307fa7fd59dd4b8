"""Run by test_zoo_parallel.py, alone and under torchrun: logits, answers and LoRA steps of the models beside CogVLM."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sat_models import runtime
from sat_models.errors import run_script
from sat_models.generation.engine import Engine
from sat_models.generation.sampling import SamplingOptions
from sat_models.processing.layout import VLMInputs, layout_training
from sat_models.training.trainable import GradientWatch, apply_plan, parameter_groups, plan_of
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import reference, tensors
from test_parity import logits_of

STEPS = 20


def sample_of(vlm: VLM) -> VLMInputs:
    """A picture of noise between made words, and an answer."""
    config = vlm.config
    layout = layout_training(
        [[4, 5], config.images.plan(), [7, 8, 9]], [10, 11, 12], bos_id=config.bos_token_id,
        eos_id=config.eos_token_ids[0], max_length=config.max_sequence_length, form=config.sequence_form,
    )  # fmt: skip
    pixels = torch.randn(1, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(0))
    return VLMInputs.from_layout(layout, vision_image=pixels)


def furthest_from_the_original(folder: Path) -> float:
    """Largest difference of any logit of any case of a golden folder."""
    vlm, golden = load_pretrained(folder, device="cpu", dtype="float32"), tensors(folder)
    found = {case["key"]: logits_of(vlm, folder, case) for case in reference(folder)["cases"]}
    return max((logits - golden[f"{key}.logits"]).abs().max().item() for key, logits in found.items())


def run_model(folder: Path) -> dict[str, Any]:
    """Logits, answer and losses of one model."""
    vlm = load_pretrained(folder, device="cpu", dtype="float32")
    inputs = sample_of(vlm)
    with torch.inference_mode():
        logits = vlm.model(**inputs.model_kwargs())[0]
    engine = Engine(vlm.model, eos_id=vlm.config.eos_token_ids, max_length=128, device="cpu")
    answer = list(engine.tokens(inputs, SamplingOptions(max_new_tokens=8)))
    model = vlm.model
    apply_plan(model, plan_of("all", 4, alpha=4.0))
    optimizer, losses = torch.optim.AdamW(parameter_groups(model, learning_rate=5e-3)), []
    model.train()
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(**inputs.model_kwargs())[0][0, :-1], inputs.labels[0, 1:])
        watch = GradientWatch(model) if step == 0 else None
        loss.backward()
        if watch:
            watch.check()
        optimizer.step()
        losses.append(loss.item())
    return {"logits": logits, "answer": answer, "losses": losses}


def main() -> None:
    """Output folder, folders of models or of golden data: the first process writes `<size>.pt`."""
    out, *folders = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    golden = [folder for folder in folders if (folder / "reference.json").is_file()]
    report: dict[str, Any] = {folder.name: run_model(folder) for folder in folders if folder not in golden}
    report["golden"] = {folder.name: furthest_from_the_original(folder) for folder in golden}
    if runtime.rank() == 0:
        torch.save(report, out / f"{runtime.world_size()}.pt")
        (out / f"{runtime.world_size()}.json").write_text(json.dumps(sorted(report)))


if __name__ == "__main__":
    run_script(main)
