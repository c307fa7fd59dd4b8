"""Run by test_quant_parallel.py under torchrun: quantised weights and LoRA over two processes; a JSON file per rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from sat_models import runtime
from sat_models.checkpoint.io import save_checkpoint
from sat_models.errors import run_script
from sat_models.models.common import quantised_kernels
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM


def logits(vlm: VLM, image: str, *, in_bytes: bool = False) -> torch.Tensor:
    """With inputs as they are, which shows what the weights mean, or made bytes as the C kernels do."""
    inputs = vlm.processor(image, "Describe this image.")
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        if not in_bytes:
            patch.setattr(quantised_kernels, "load", lambda: None)
        return vlm.model(**inputs.model_kwargs())[0]


def same(one: VLM, other: VLM) -> bool:
    first, second = one.model.state_dict(), other.model.state_dict()
    return first.keys() == second.keys() and all(value.equal(second[name]) for name, value in first.items())


def main() -> None:
    """Folder with logits of one process, two-part checkpoints and adapters; the model's name; a picture."""
    out, name, image = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    wanted = torch.load(out / "logits.pt")
    report: dict[str, object] = {}
    for bits in (8, 4):
        vlm = load_pretrained(name, device="cpu", quant=bits)
        report[f"quant {bits}"] = (logits(vlm, image) - wanted[f"quant {bits}"]).abs().max().item()
        bytes_off = logits(vlm, image, in_bytes=True) - wanted[f"bytes {bits}"]
        report[f"bytes {bits}"] = (bytes_off.norm() / (wanted[f"quant {bits}"] - wanted["full"]).norm()).item()
        report[f"stored {bits}"] = same(vlm, load_pretrained(out / f"q{bits}", device="cpu"))
        save_checkpoint(vlm.model, out / f"saved{bits}", vlm.config, step=1)
    for name in ("lora", "dora"):
        vlm = load_pretrained(out / name, device="cpu")
        report[name] = (logits(vlm, image) - wanted[name]).abs().max().item()
    (out / f"{runtime.rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    run_script(main)
