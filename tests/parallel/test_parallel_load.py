"""One model over several processes, from one stored part and from two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sat_models.zoo import load_pretrained

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from golden_set import each_folder, twin  # noqa: E402

GOLDEN = ROOT / "tests" / "golden"


def _torchrun(processes: int, tmp_path: Path, folder: Path) -> list[dict]:
    """The workers' reports, by rank."""
    halves = twin(folder, "mp2", tmp_path)
    twin(folder, "hf", tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [
        str(Path(__file__).with_name("load_worker.py")),
        str(folder),
        str(halves),
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(processes)]


@each_folder("cogvlm", "cogagent")
def test_two_processes(tmp_path, folder):
    reports = _torchrun(2, tmp_path, folder)
    for report in reports:
        for source in ("from_one", "from_two", "from_hf", "saved"):
            assert report[source] <= 2e-5, source
        assert report["bits"], "this process's part differs from the one the original loader makes"
        assert all(report["answers"]) and report["after"] == "still together"
    assert "another process of this run failed" in reports[0]["one_fails"]
    assert "does not exist" in reports[1]["one_fails"]
    assert sorted(os.listdir(tmp_path / "saved" / "5")) == ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"]
    saved = load_pretrained(tmp_path / "saved", device="cpu").model.state_dict()
    original = load_pretrained(folder, device="cpu").model.state_dict()
    assert all(saved[name].equal(original[name]) for name in original)


@pytest.mark.slow
def test_three_processes_cannot_share_four_heads(tmp_path):
    for report in _torchrun(3, tmp_path, GOLDEN / "cogvlm-mini"):
        assert "model-parallel size 3 does not divide num_attention_heads = 4" in report["error"]
