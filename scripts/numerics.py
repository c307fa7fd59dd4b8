"""Print the table of docs/numerics.md: this project's logits against the originals', on the golden checkpoints."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sat_models.errors import run_script

GOLDEN = ROOT / "tests" / "golden"
SHARED = ("input_ids", "position_ids", "vision_expert_mask", "image_embed_mask")


def largest_difference(folder: str, reference: str, dtype: str) -> float:
    """Over all cases of a golden folder; run under torchrun, the model is split over the processes."""
    import torch
    from safetensors.torch import load_file

    from sat_models.zoo import load_pretrained

    model = load_pretrained(GOLDEN / folder, device="cpu", dtype=dtype).model
    stored = load_file(GOLDEN / reference / "reference.safetensors")
    float_type = next(model.parameters()).dtype
    pixels = {"vision_image": stored["pixels.vision"].to(float_type)}
    if "pixels.cross" in stored:
        pixels["cross_image"] = stored["pixels.cross"].to(float_type)
    worst = 0.0
    for case in json.loads((GOLDEN / reference / "reference.json").read_text())["cases"]:
        given = {name: stored[f"{case['key']}.{name}"][None] for name in SHARED}
        with torch.inference_mode():
            logits = model(**given, **pixels)[0][0].float()
        worst = max(worst, float((logits - stored[f"{case['key']}.logits"]).abs().max()))
    return worst


def main() -> None:
    from sat_models import runtime

    print_here = runtime.rank() == 0
    processes = runtime.world_size()
    if print_here:
        print("| checkpoint | processes | dtype | largest difference of a logit |\n|---|---|---|---|")
    for model in ("cogvlm-mini", "cogagent-mini"):
        folders = [model, f"{model}-hf"] if processes == 1 else [model]
        for folder in folders:
            for dtype in ("fp32", "bf16", "fp16") if (folder, processes) == (model, 1) else ("fp32",):
                difference = largest_difference(folder, model, dtype)
                if print_here:
                    print(f"| {folder} | {processes} | {dtype} | {difference:.2g} |", flush=True)


def run() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()


if __name__ == "__main__":
    run_script(run)
