"""Run by test_gradients.py, alone and under torchrun: one backward of each miniature; gradients as whole tensors."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from mixins.base import ZooModel
from sat_models import runtime
from sat_models.checkpoint.reshard import merge, split_rules
from sat_models.errors import run_script
from sat_models.zoo import load_pretrained

MODELS = ("cogvlm-mini", "cogagent-mini")
SHARED = ("input_ids", "position_ids", "vision_expert_mask", "image_embed_mask")
PIXELS = {"vision_image": "pixels.vision", "cross_image": "pixels.cross"}


def backward(golden: Path, *, recompute: bool) -> ZooModel:
    """The model after a backward of its first golden case, everything trained."""
    model = load_pretrained(golden, device="cpu", dtype="float32").model.train().requires_grad_(True)
    for module in model.modules():
        if hasattr(module, "checkpoint_activations"):
            module.checkpoint_activations = recompute
    stored = load_file(golden / "reference.safetensors")
    given = {name: stored[f"case0.{name}"][None] for name in SHARED}
    given |= {name: stored[key] for name, key in PIXELS.items() if key in stored}
    logits = model(**given)[0][0]
    nn.functional.cross_entropy(logits, torch.arange(len(logits))).backward()
    return model


def whole_gradients(model: ZooModel) -> tuple[dict[str, Tensor], float]:
    """Gradients put together from all processes, and how far apart those are that every process holds."""
    rules, whole, apart = split_rules(model), {}, 0.0
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        parts = [torch.empty_like(parameter.grad) for _ in range(runtime.world_size())]
        dist.all_gather(parts, parameter.grad.contiguous())
        whole[name] = merge(parts, rules[name])
        if rules[name].dim is None:
            apart = max(apart, *(float((part - parts[0]).abs().max()) for part in parts))
    return whole, apart


def main(golden: Path, out: Path) -> None:
    """Writes `out/<model>-<recompute>.pt` from the first process."""
    for name in MODELS:
        for recompute in (False, True):
            report = whole_gradients(backward(golden / name, recompute=recompute))
            if runtime.rank() == 0:
                torch.save(report, out / f"{name}-{recompute}.pt")


if __name__ == "__main__":
    run_script(lambda: main(Path(sys.argv[1]), Path(sys.argv[2])))
