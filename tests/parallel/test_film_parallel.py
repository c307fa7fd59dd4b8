"""CogVideoX split over two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from film_golden import kinds, sat_folder, tiny_folder  # noqa: E402
from golden_set import reference  # noqa: E402


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    places = []
    for folder in kinds():
        (tmp_path / folder.name).mkdir()
        places += [str(folder), str(sat_folder(folder, tmp_path / folder.name))]
    tiny = tiny_folder("cogvideox-2b", tmp_path / "tiny")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).with_name("film_worker.py")), str(tmp_path), str(tiny), *places]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-4000:]
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for folder in kinds():
        for report in reports:
            assert report[folder.name]["worst"] <= 2e-5, report
            assert report[folder.name]["rows"] == 3 * reference(folder)["sizes"]["hidden"] // 2
    assert reports[0]["film"] == reports[1]["film"]
