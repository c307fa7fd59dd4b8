"""Run under torchrun by the parity tests of `tests/models`: the furthest of a golden folder's logits, a file a rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from sat_models import runtime
from sat_models.errors import run_script
from sat_models.zoo import load_pretrained

ARGUMENTS = ("input_ids", "position_ids", "image_embed_mask", "vision_expert_mask")


def pixels_of(tensors: dict[str, torch.Tensor], case: dict) -> torch.Tensor:
    """What a case shows to the tower: its own image (of XComposer2's tiled form), or those that it counts or names."""
    if (own := tensors.get(f"{case['key']}.pixels")) is not None:
        return own
    if case.get("images") == 2:
        return tensors["pixels.two"]
    names = {"tiles": ["tiles"], "one": ["one"], "both": ["tiles", "one"]}.get(case.get("image"), ["vision"])
    return torch.cat([tensors[f"pixels.{name}"] for name in names])


def main() -> None:
    """Golden folder, folder for the reports."""
    folder, out = map(Path, sys.argv[1:])
    tensors = load_file(folder / "reference.safetensors")
    vlm = load_pretrained(folder, device="cpu", dtype="float32")
    worst = 0.0
    for case in json.loads((folder / "reference.json").read_text())["cases"]:
        key = case["key"]
        given = {name: tensors[f"{key}.{name}"][None] for name in ARGUMENTS if f"{key}.{name}" in tensors}
        if f"{key}.im_mask" in tensors:  # XComposer2's name of it
            given["image_embed_mask"] = tensors[f"{key}.im_mask"][None]
        if bool(given["image_embed_mask"].any()):
            given["vision_image"] = pixels_of(tensors, case)
        with torch.inference_mode():
            logits = vlm.model(**given)[0][0]
        worst = max(worst, (logits - tensors[f"{key}.logits"]).abs().max().item())
    (out / f"{runtime.rank()}.json").write_text(json.dumps(worst))


if __name__ == "__main__":
    run_script(main)
