"""Run by test_painter_parallel.py under torchrun: a painter over two processes; one JSON per rank."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import reference, tensors
from painter_golden import given

from sat_models import runtime
from sat_models.checkpoint.io import save_checkpoint
from sat_models.errors import ZooError, run_script
from sat_models.zoo import Painter, load_pretrained


def furthest(painter: Painter, folder: Path) -> float:
    """Largest difference to the original's outputs."""
    golden, worst = tensors(folder), 0.0
    for number in range(len(reference(folder)["cases"])):
        with torch.inference_mode():
            v = painter.model(**given(golden, f"case{number}"))
        worst = max(worst, (v - golden[f"case{number}.out_sat"]).abs().max().item())
    return worst


def main() -> None:
    """golden folder, SAT's folder ready to be loaded, output folder."""
    folder, ready, out = map(Path, sys.argv[1:])
    report: dict[str, object] = {}
    painter = load_pretrained(ready, device="cpu", dtype="float32")
    report["from_sat"] = furthest(painter, folder)
    report["rows"] = len(painter.model.transformer.layers[0].attention.query_key_value.weight)
    hub = load_pretrained(folder / "diffusers" / "transformer", device="cpu", dtype="float32")
    report["from_diffusers"] = furthest(hub, folder)
    save_checkpoint(painter.model, out / "saved", painter.config, step=2)
    report["saved"] = furthest(load_pretrained(out / "saved", device="cpu", dtype="float32"), folder)
    image = painter.draw("A red circle", steps=2)  # without a seed: all processes must have the same one
    report["image"] = hashlib.sha256(image.tobytes()).hexdigest()
    if runtime.rank() == 1:  # one process has lost its decoder: none goes on
        painter._check_parts = lambda: (_ for _ in ()).throw(ZooError("no decoder here"))
    try:
        painter.draw("A red circle", steps=2)
    except ZooError as error:
        report["error"] = str(error)
    (out / f"{runtime.rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    run_script(main)
