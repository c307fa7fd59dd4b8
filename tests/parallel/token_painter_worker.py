"""Run by test_token_painter_parallel.py under torchrun: models that write image codes, over two processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import reference, tensors

from sat_models import runtime
from sat_models.errors import run_script
from sat_models.sampling.codes import CodeChoice
from sat_models.zoo import load_pretrained

PLACES = {
    "coglm": ("coglm", 7, "coglm.logits.plain"),
    "dsr": ("cogview2-dsr", 41, "dsr.logits"),
    "itersr": ("cogview2-itersr", 41, "itersr.logits"),
    "stage1": ("cogvideo-stage1", 23, "stage1.logits.plain"),
    "stage2": ("cogvideo-stage2", 41, "stage2.logits"),
}


def main() -> None:
    """golden folder, output folder: one JSON per rank."""
    folder, out = map(Path, sys.argv[1:])
    report: dict[str, object] = {"furthest": {}}
    golden, codes = tensors(folder), reference(folder)["sizes"]["n_image"]
    for name, (place, step, wanted) in PLACES.items():
        if not (folder / place).is_dir():
            continue
        painter = load_pretrained(folder / place, device="cpu", dtype="float32")
        ids, positions = golden[f"{name}.ids"][None], golden[f"{name}.position_ids"][None]
        with torch.inference_mode():
            logits = painter.model(input_ids=ids, position_ids=positions[:, : ids.shape[1]])[0]
        report["furthest"][name] = (logits[0, ::step, :codes] - golden[wanted]).abs().max().item()
        if name == "coglm":
            length = reference(folder)["coglm"]["context_length"] + 1
            choice = CodeChoice(temperature=1.0, best=5)
            report["written"] = [int(code) for code in painter.write(ids[:, :length], seed=1, count=5, choice=choice)]
            report["rows"] = len(painter.model.transformer.layers[0].attention.query_key_value.weight)
    (out / f"{runtime.rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    run_script(main)
