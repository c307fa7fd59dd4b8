"""A painter whose transformer is split over two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from golden_set import each_folder, reference, tensors  # noqa: E402
from painter_golden import given, sat_folder  # noqa: E402

from sat_models.errors import ConfigError  # noqa: E402
from sat_models.zoo import load_pretrained  # noqa: E402

TOLERANCE = 2e-5


@each_folder("cogview3-plus")
def test_two_processes(folder: Path, tmp_path: Path) -> None:
    ready = sat_folder(folder, tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).with_name("painter_worker.py")), str(folder), str(ready), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-4000:]
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for report in reports:
        assert max(report[name] for name in ("from_sat", "from_diffusers", "saved")) <= TOLERANCE, report
        assert report["rows"] == 3 * reference(folder)["sizes"]["hidden_size"] // 2
        assert "no decoder here" in report["error"]
    assert reports[0]["image"] == reports[1]["image"]
    saved, golden = tmp_path / "saved", tensors(folder)
    assert sorted(os.listdir(saved / "2")) == ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"]
    alone = load_pretrained(saved, device="cpu", dtype="float32").model
    with torch.inference_mode():
        v = alone(**given(golden, "case0"))
    torch.testing.assert_close(v, golden["case0.out_sat"], atol=TOLERANCE, rtol=0)


@each_folder("cogview3-plus")
def test_a_number_of_processes_that_does_not_divide_it(folder: Path, tmp_path: Path) -> None:
    config = load_pretrained(sat_folder(folder, tmp_path), device="cpu").config
    with pytest.raises(ConfigError, match="model-parallel size 7 does not divide num_attention_heads"):
        config.check_model_parallel(7)
