"""Two processes that fine-tune the miniature together, started by test_lora_parallel.py; one JSON file per rank.

They are forked from one that has imported everything, which halves the time of starting them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from mixins.base import ZooModel
from mixins.lora import lora_layers
from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.checkpoint.adapter import save_adapter
from sat_models.checkpoint.reshard import split_rules
from sat_models.errors import run_script
from sat_models.training.trainable import (
    GradientWatch,
    TrainablePlan,
    apply_plan,
    parameter_groups,
    plan_of,
    trainable_table,
)
from sat_models.zoo import load_pretrained

PLANS = {
    "lora": (plan_of("all", 4, alpha=4.0), torch.optim.AdamW, 5e-3, 20),
    "dora": (plan_of("all", 4, alpha=4.0, use_dora=True, prefix_length=3), torch.optim.SGD, 0.2, 12),
    "full": (plan_of("all", -1), torch.optim.SGD, 0.05, 5),
    "dropout": (plan_of("all", 4, alpha=4.0, dropout=0.3), torch.optim.SGD, 0.2, 3),
}


def batch(golden: Path, step: int) -> tuple[dict[str, Tensor], Tensor]:
    """One of the original's training samples and its labels."""
    data = load_file(golden / "reference.safetensors")
    key = f"train{step % 3}"
    names = ("input_ids", "position_ids", "vision_expert_mask", "image_embed_mask")
    return {n: data[f"{key}.{n}"] for n in names} | {"vision_image": data["pixels.vision"]}, data[f"{key}.labels"]


def loss_of(model: nn.Module, golden: Path, step: int) -> Tensor:
    """Next-token loss over the answer."""
    inputs, labels = batch(golden, step)
    return nn.functional.cross_entropy(model(**inputs)[0][0, :-1], labels[0, 1:])


def logits_of(model: ZooModel, golden: Path) -> Tensor:
    """Logits of a sample, without dropout."""
    model.eval()
    with torch.inference_mode():
        return model(**batch(golden, 0)[0])[0]


def furthest_apart(model: nn.Module) -> float:
    """Largest difference between ranks in what shall be whole on each: parameters, and their gradients."""
    rules, worst = split_rules(model), 0.0
    for name, parameter in model.named_parameters():
        if rules[name].dim is None and parameter.requires_grad:
            for value in (parameter.detach(), parameter.grad):
                low, high = value.clone(), value.clone()
                dist.all_reduce(low, dist.ReduceOp.MIN, group=mpu.get_model_parallel_group())
                dist.all_reduce(high, dist.ReduceOp.MAX, group=mpu.get_model_parallel_group())
                worst = max(worst, (high - low).max().item())
    return worst


def train(
    golden: Path, plan: TrainablePlan, kind: type, rate: float, steps: int, out: Path, key: str
) -> dict[str, Any]:
    """Train, save the adapter, merge; what was seen."""
    runtime.seed_everything(0)
    model = load_pretrained(golden, device="cpu", dtype="float32").model
    apply_plan(model, plan)
    optimizer, losses = kind(parameter_groups(model, learning_rate=rate)), []
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, golden, step)
        watch = GradientWatch(model) if step == 0 else None
        loss.backward()
        if watch:
            watch.check()
        optimizer.step()
        losses.append(loss.item())
    report = {"losses": losses, "apart": furthest_apart(model), "table": trainable_table(model)}
    trained = logits_of(model, golden)
    torch.save(trained, out / f"{key}-logits-{mpu.get_model_parallel_world_size()}.pt")
    if lora_layers(model):
        folder = out / f"{key}-{mpu.get_model_parallel_world_size()}"
        save_adapter(model, folder, base_model=str(golden), extra={"step": steps})
        merged = load_pretrained(folder, device="cpu", dtype="float32").model
        report["merged"] = (logits_of(merged, golden) - trained).abs().max().item()
    return report


def run_rank(rank: int, size: int, golden: Path, out: Path) -> None:
    """One process of `size`."""
    dist.init_process_group("gloo", init_method=f"file://{out / 'rendezvous'}", rank=rank, world_size=size)
    report = {key: train(golden, *given, out, key) for key, given in PLANS.items()}
    (out / f"{size}-{rank}.json").write_text(json.dumps(report))


def main() -> int:
    """golden folder, output folder; 0 if all processes did their work."""
    golden, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    size, children = 2, set()
    for rank in range(size):
        child = os.fork()
        if child:
            children.add(child)
            continue
        try:
            run_rank(rank, size, golden, out)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    while children:
        child, status = os.wait()
        children.discard(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


if __name__ == "__main__":
    run_script(main)
