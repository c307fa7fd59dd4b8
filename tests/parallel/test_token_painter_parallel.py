"""Models that write image codes, split over two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from golden_set import each_folder, reference  # noqa: E402


@each_folder("cogview2", "cogvideo")
def test_two_processes(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).with_name("token_painter_worker.py")), str(folder), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-4000:]
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert reports[0] == reports[1]
    assert len(reports[0]["furthest"]) in (2, 3)
    assert max(reports[0]["furthest"].values()) <= 2e-5, reports[0]
    if "rows" in reports[0]:
        assert reports[0]["rows"] == 3 * reference(folder)["sizes"]["hidden"] // 2
