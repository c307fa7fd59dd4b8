"""Checkpoints of two processes: one rank's trouble is every rank's error, and no rank waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_save_and_fail_together(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(Path(__file__).with_name("store_worker.py")), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-4000:]
    reports = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for report in reports:
        assert "checkpoints cannot be saved" in report["too_much"] and "GB" in report["too_much"]
        for failing in (0, 1):
            message = report[f"fails_on_{failing}"]
            assert f"{failing}_3.bin: No space left on device" in message
        assert "No space left on device" in report["seal_fails"]
        assert report["newest"] == "3" and report["after_damage"] == "1" and report["score"] == 1.0
        assert report["files"] == [f"{rank}_{number}.bin" for rank in (0, 1) for number in range(3)]
        assert "process 1 does not see what process 0 writes" in report["not_shared"]
    assert reports[0]["left_by_0"] == reports[0]["left_by_1"] == ["1", "best", "latest"]
