"""Run by test_film_parallel.py under torchrun: CogVideoX over two processes; one JSON per rank."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from film_golden import given
from golden_set import reference, tensors

from sat_models import runtime
from sat_models.errors import run_script
from sat_models.zoo import load_pretrained


def main() -> None:
    """output folder, a folder that a film is made with, then golden folders, each with SAT's ready to be loaded."""
    out, tiny, *folders = map(Path, sys.argv[1:])
    report: dict[str, object] = {}
    for folder, ready in zip(folders[::2], folders[1::2], strict=True):
        model, golden, worst = load_pretrained(ready, device="cpu", dtype="float32").model, tensors(folder), 0.0
        for number in range(len(reference(folder)["cases"])):
            with torch.inference_mode():
                v = model(**given(golden, f"case{number}"))
            worst = max(worst, (v - golden[f"case{number}.out_sat"]).abs().max().item())
        rows = len(model.transformer.layers[0].attention.query_key_value.weight)
        report[folder.name] = {"worst": worst, "rows": rows}
    film = load_pretrained(tiny, device="cpu", dtype="float32").film("A red circle moves.", frames=9, steps=2)
    report["film"] = hashlib.sha256(film.frames.tobytes()).hexdigest()  # without a seed: all must have the same one
    (out / f"{runtime.rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    run_script(main)
