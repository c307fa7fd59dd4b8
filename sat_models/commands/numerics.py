"""Print the table of docs/numerics.md: this project's logits against the originals', on the golden checkpoints.

They are read from `tests/golden` of the checkout, or from the folder that ZOO_GOLDEN names.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from sat_models.errors import InputError, run_script

SHARED = ("input_ids", "position_ids", "vision_expert_mask", "image_embed_mask")
MODELS = ("cogvlm-mini", "cogagent-mini")


def golden_set() -> Path:
    """The folder of golden checkpoints.

    Raises:
        InputError: the models of the table are not there.
    """
    given = os.environ.get("ZOO_GOLDEN")
    folder = Path(given).expanduser() if given else Path(__file__).resolve().parents[2] / "tests" / "golden"
    if absent := [name for name in MODELS if not (folder / name / "reference.json").is_file()]:
        raise InputError(
            f"{folder} holds no {absent[0]} with its reference.json. Run it from a checkout, or name a golden set with "
            "ZOO_GOLDEN."
        )
    return folder


def largest_difference(golden: Path, folder: str, reference: str, dtype: str) -> float:
    """Over all cases of a golden folder; run under torchrun, the model is split over the processes."""
    import torch
    from safetensors.torch import load_file

    from sat_models.zoo import load_pretrained

    model = load_pretrained(golden / folder, device="cpu", dtype=dtype).model
    stored = load_file(golden / reference / "reference.safetensors")
    float_type = next(model.parameters()).dtype
    pixels = {"vision_image": stored["pixels.vision"].to(float_type)}
    if "pixels.cross" in stored:
        pixels["cross_image"] = stored["pixels.cross"].to(float_type)
    worst = 0.0
    for case in json.loads((golden / reference / "reference.json").read_text())["cases"]:
        given = {name: stored[f"{case['key']}.{name}"][None] for name in SHARED}
        with torch.inference_mode():
            logits = model(**given, **pixels)[0][0].float()
        worst = max(worst, float((logits - stored[f"{case['key']}.logits"]).abs().max()))
    return worst


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    golden = golden_set()
    from sat_models import runtime

    processes = runtime.world_size()
    rows = [
        (folder, model, dtype)
        for model in MODELS
        for folder in ([model, f"{model}-hf"] if processes == 1 else [model])
        for dtype in (("fp32", "bf16", "fp16") if (folder, processes) == (model, 1) else ("fp32",))
    ]
    if runtime.rank() == 0:
        print("| checkpoint | processes | dtype | largest difference of a logit |\n|---|---|---|---|")
    for folder, model, dtype in rows:
        difference = largest_difference(golden, folder, model, dtype)
        if runtime.rank() == 0:
            print(f"| {folder} | {processes} | {dtype} | {difference:.2g} |", flush=True)
    return 0


def command() -> None:
    """The console command `sat-numerics`, and `scripts/numerics.py`."""
    run_script(main)
