"""Run by test_parallel_load.py under torchrun: load, compare, generate, save; one JSON file per rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from sat_models import runtime
from sat_models.checkpoint.io import read_weights, save_checkpoint
from sat_models.errors import ZooError, run_script
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM


def furthest(vlm: VLM, golden: Path) -> float:
    """Largest difference of any logit of any golden case."""
    reference = load_file(golden / "reference.safetensors")
    images = {
        f"{name}_image": reference[f"pixels.{name}"] for name in ("vision", "cross") if f"pixels.{name}" in reference
    }
    worst = 0.0
    for case in json.loads((golden / "reference.json").read_text())["cases"]:
        names = ("input_ids", "position_ids", "vision_expert_mask", "image_embed_mask")
        given = {name: reference[f"{case['key']}.{name}"][None] for name in names}
        with torch.inference_mode():
            logits = vlm.model(**given, attention_mask=None, **images)[0][0]
        worst = max(worst, (logits - reference[f"{case['key']}.logits"]).abs().max().item())
    return worst


def answers_equal(vlm: VLM, golden: Path) -> list[bool]:
    """Greedy ids that are the original's, case by case (the first four)."""
    equal = []
    for case in json.loads((golden / "reference.json").read_text())["cases"][:4]:
        asked, said = (golden / "image.png", case["query"], case["history"], case["version"]), case["generated"]
        result = vlm.generate(*asked, max_new_tokens=len(said))
        equal.append(result.token_ids == [token for token in said if token not in vlm.config.eos_token_ids])
    return equal


def error_of(path: Path) -> str:
    """Message with which loading fails here."""
    try:
        load_pretrained(path, device="cpu")
    except ZooError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    """golden folder, folder with two parts, output folder."""
    golden, halves, out = map(Path, sys.argv[1:])
    rank = runtime.rank()
    if runtime.world_size() == 3:
        (out / f"{rank}.json").write_text(json.dumps({"error": error_of(golden)}))
        return
    report: dict[str, object] = {}
    hub = golden.with_name(f"{golden.name}-hf")
    for name, folder in (("from_one", golden), ("from_two", halves), ("from_hf", hub)):
        vlm = load_pretrained(folder, device="cpu", dtype="float32")
        report[name] = furthest(vlm, golden)
    part = read_weights(halves / "1" / f"mp_rank_{rank:02d}_model_states.pt")
    vlm = load_pretrained(golden, device="cpu")
    report["bits"] = all(torch.equal(value, part[name]) for name, value in vlm.model.state_dict().items())
    report["answers"] = answers_equal(vlm, golden)
    save_checkpoint(vlm.model, out / "saved", vlm.config, step=5)
    report["saved"] = furthest(load_pretrained(out / "saved", device="cpu"), golden)
    damaged = out / "damaged" / str(rank)  # only the first rank's path leads to a good checkpoint
    report["one_fails"] = error_of(golden if rank == 0 else damaged)
    report["after"] = runtime.broadcast_object("still together" if rank == 0 else None)
    (out / f"{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    run_script(main)
