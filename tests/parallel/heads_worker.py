"""Run by test_heads_parallel.py under torchrun: a LLaMA with shared keys over its processes; a JSON file per rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mixins.base import ZooModel
from mixins.kv_cache import kv_cache
from mixins.lora import LoRASettings, apply_lora, lora_state_dict
from mixins.ptuning import add_ptuning
from sat_models import runtime
from sat_models.checkpoint.adapter import save_adapter
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.io import load_weights, save_checkpoint
from sat_models.checkpoint.quantise import Quantiser
from sat_models.checkpoint.reshard import slice_for_rank, split_rules
from sat_models.errors import run_script
from sat_models.generation.steps.choose import Stepper
from sat_models.models.build import build_model, make_config
from sat_models.models.common import quantised_kernels
from sat_models.models.common.quantisation import Quantisation
from sat_models.training.trainable import mark_model_parallel

PROMPT = torch.tensor([[1, 5, 9, 33, 7, 150, 2, 84], [1, 90, 91, 3, 60, 4, 8, 12]])
LORA = LoRASettings(targets=("*query_key_value", "*dense", "*gate_proj*"), rank=3, alpha=3.0)


def loaded(folder: Path, bits: int | None = None) -> ZooModel:
    """This process's part of the model, quantised while it is loaded, or as it is stored."""
    checkpoint = find_checkpoint(folder)
    model = build_model(make_config(checkpoint.config))
    quantiser = None if bits is None else Quantiser(model, Quantisation(bits=bits))
    load_weights(model, checkpoint, device="cpu", quantiser=quantiser)
    return model.eval().requires_grad_(False)


def widths(size: int) -> tuple[int, ...]:
    """Bits of quantised weights that so many processes can divide: a block of 4 bits is 64 of 128 inputs."""
    return (8, 4) if size == 2 else (8,)


@torch.no_grad()
def logits(model: ZooModel) -> Tensor:
    """Of the prompt, with inputs as they are, which shows what quantised weights mean."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantised_kernels, "load", lambda: None)
        return model(PROMPT)[0]


@torch.no_grad()
def stepwise(model: ZooModel) -> Tensor:
    """The same, its last five positions one by one."""
    steps = []
    with kv_cache(model, 8) as cache:
        model(PROMPT[:, :3])
        cache.advance(3)
        step = Stepper(model, cache)
        for place in range(3, 8):
            steps.append(step(PROMPT[:, place], torch.tensor([[place]] * 2), None, max_position=place))
    return torch.stack(steps, dim=1)


@torch.no_grad()
def fill_lora(model: ZooModel, tensors: dict[str, Tensor]) -> None:
    """This process's part of whole matrices."""
    rules, rank, size = split_rules(model), runtime.rank(), runtime.world_size()
    for name, value in lora_state_dict(model).items():
        value.copy_(slice_for_rank(tensors[name], rules[name], rank, size))


def gradient(model: ZooModel) -> Tensor:
    """Of the first layer's joined weight, this process's part."""
    weight = model.transformer.layers[0].attention.query_key_value.weight.requires_grad_(True)
    mark_model_parallel(model)
    model(PROMPT)[0].log_softmax(-1)[:, :-1].gather(-1, PROMPT[:, 1:, None]).mean().backward()
    return weight.grad


def low_rank_gradients(model: ZooModel) -> dict[str, Tensor]:
    """Of all matrices, this process's part."""
    for parameter in lora_parameters(model).values():
        parameter.requires_grad_(True)
    mark_model_parallel(model)
    model(PROMPT)[0].log_softmax(-1)[:, :-1].gather(-1, PROMPT[:, 1:, None]).mean().backward()
    return {name: parameter.grad for name, parameter in lora_parameters(model).items()}


def lora_parameters(model: ZooModel) -> dict[str, torch.nn.Parameter]:
    """The matrices by name."""
    names = lora_state_dict(model)
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


@torch.no_grad()
def prefixed(model: ZooModel) -> Tensor:
    """Logits behind a prefix."""
    add_ptuning(model, 3, seed=5)
    return model(PROMPT)[0]


def main() -> None:
    """Folder with checkpoints, and what one process found."""
    out = Path(sys.argv[1])
    runtime.init_distributed(torch.device("cpu"))
    size = runtime.world_size()
    runtime.init_model_parallel(size)
    wanted = torch.load(out / "wanted.pt")
    report: dict[str, object] = {}
    for name in ("one", "two", "four", "hf"):
        report[name] = (logits(loaded(out / name)) - wanted["logits"]).abs().max().item()
    model = loaded(out / "two")
    report["stepwise"] = (stepwise(model) - wanted["logits"][:, 3:]).abs().max().item()
    save_checkpoint(model, out / f"saved of {size}", model.config, step=1)
    report["prefix"] = (prefixed(loaded(out / "four")) - wanted["prefix"]).abs().max().item()
    name = "transformer.layers.0.attention.query_key_value.weight"
    mine = slice_for_rank(wanted["gradient"], split_rules(model)[name], runtime.rank(), size)
    report["gradient"] = (gradient(model) - mine).abs().max().item()
    apply_lora(model, LORA)
    fill_lora(model, wanted["matrices"])
    report["lora"] = (logits(model) - wanted["lora"]).abs().max().item()
    save_adapter(model, out / f"adapter of {size}", base_model="one")
    rules = split_rules(model)
    report["low rank"] = max(
        (found - slice_for_rank(wanted["low rank"][key], rules[key], runtime.rank(), size)).abs().max().item()
        for key, found in low_rank_gradients(model).items()
    )
    report["merged"] = (logits(loaded(out / "merged")) - wanted["lora"]).abs().max().item()
    for bits in widths(size):
        model = loaded(out / "one", bits)
        report[f"quant {bits}"] = (logits(model) - wanted[f"quant {bits}"]).abs().max().item()
        stored = loaded(out / f"q{bits}").state_dict()
        report[f"stored {bits}"] = all(value.equal(stored[key]) for key, value in model.state_dict().items())
        save_checkpoint(model, out / f"saved{bits} of {size}", Quantisation(bits=bits).noted_in(model.config), step=1)
    (out / f"{runtime.rank()} of {size}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    run_script(main)
