"""Two processes, one answer: what happens when one stops, fails, or fails alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("ranks_worker.py")


def _run(scenario: str, folder: Path) -> list[subprocess.CompletedProcess[str]]:
    """Both processes to their end, process 0 first."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), "2", str(folder / "rendezvous"), scenario],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        ended = []
        for process in started:
            out, err = process.communicate(timeout=600)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
        return ended
    finally:
        for process in started:
            process.kill()


def test_turns_end_on_all_processes_and_the_next_one_works(tmp_path: Path) -> None:
    front, behind = _run("recovers", tmp_path)
    assert front.returncode == 0, front.stderr
    assert behind.returncode == 0, behind.stderr
    report = json.loads(front.stdout)
    whole, closed, too_long, failed, not_numbers, again = report["turns"]
    assert whole == again == {"ids": [5, 6], "finish": "stop"}
    assert closed == {"ids": [5, 6], "finish": None}
    assert "takes 106 tokens" in too_long["error"], "refused before the others heard of it"
    assert failed["error"] == "RuntimeError: no memory"
    assert "not numbers" in not_numbers["error"]
    assert report["usable"]
    assert report["mixins"] == 0


@pytest.mark.slow
def test_a_process_that_fails_alone_ends_the_job(tmp_path: Path) -> None:
    front, behind = _run("alone", tmp_path)
    assert behind.returncode != 0
    assert "process 1: RuntimeError: no memory; the processes" in behind.stderr, "the real reason is said"
    report = json.loads(front.stdout)
    assert report["turns"][0] == {"ids": [5, 6], "finish": "stop"}
    assert "error" in report["turns"][1]
    assert not report["usable"]
    assert "start the program again" in report["turns"][2]["error"]
