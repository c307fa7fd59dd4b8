"""Two processes share a quantised model, and one with LoRA merged; both are the model of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from quant_worker import logits

from mixins.lora import LoRASettings, apply_lora, lora_state_dict
from sat_models.checkpoint.adapter import save_adapter
from sat_models.checkpoint.convert import convert
from sat_models.models.common.quantisation import Quantisation
from sat_models.zoo import load_pretrained, locate

pytest.importorskip("bitsandbytes")

ROOT = Path(__file__).resolve().parents[2]
IMAGE = ROOT / "examples" / "1.png"
NAME = "cogvlm-tiny"


def test_two_processes(tmp_path: Path) -> None:
    wanted, states = {"full": logits(load_pretrained(NAME, device="cpu"), str(IMAGE))}, {}
    for bits in (8, 4):
        vlm = load_pretrained(NAME, device="cpu", quant=bits)
        wanted[f"quant {bits}"], states[bits] = logits(vlm, str(IMAGE)), vlm.model.state_dict()
        wanted[f"bytes {bits}"] = logits(vlm, str(IMAGE), in_bytes=True)
        convert(locate(NAME), "sat", tmp_path / f"q{bits}", quantisation=Quantisation(bits=bits), size=2)
    for name in ("lora", "dora"):
        vlm = load_pretrained(NAME, device="cpu")
        apply_lora(vlm.model, LoRASettings(targets=("transformer.layers.*",), rank=2, use_dora=name == "dora"))
        for key, value in lora_state_dict(vlm.model).items():
            if ".matrix_B." in key:
                value.normal_(std=0.05, generator=torch.Generator().manual_seed(len(key)))
        wanted[name] = logits(vlm, str(IMAGE))
        save_adapter(vlm.model, tmp_path / name, base_model=NAME)
    torch.save(wanted, tmp_path / "logits.pt")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).with_name("quant_worker.py")), str(tmp_path), NAME, str(IMAGE)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-4000:]
    for rank in range(2):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in ("quant 8", "quant 4", "lora", "dora"):
            assert report[name] <= 1e-4, name
        # Another order of adding moves an input over the edge of a byte here and there: a fraction of what 8 bits cost.
        assert report["bytes 8"] < 0.5 and report["bytes 4"] < 0.2
        assert report["stored 8"] and report["stored 4"]
    for bits, state in states.items():
        saved = load_pretrained(tmp_path / f"saved{bits}", device="cpu").model.state_dict()
        assert saved.keys() == state.keys() and all(value.equal(state[name]) for name, value in saved.items())
