"""The demo scripts as programs: start-up, pipes, exit codes, torchrun."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "cogvlm-mini"
IMAGE = GOLDEN / "image.png"
CASE = json.loads((GOLDEN / "reference.json").read_text())["cases"][0]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc-per-node=2"]
COMMON = ["--from_pretrained", str(GOLDEN), "--version", "base", "--max_new_tokens", "20", "--device", "cpu"]
ONE_SHOT = [*COMMON, "--image", str(IMAGE), "--query", CASE["query"], "--json"]


def _run(
    *flags: str, cwd: Path, script: str = "cli_demo_sat.py", launcher: list[str] | None = None, typed: str | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(launcher or []), str(ROOT / "scripts" / script), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=cwd, input=typed or "", capture_output=True, text=True, env=environment, timeout=900, check=False
    )


def _ids(done: subprocess.CompletedProcess[str]) -> list[int]:
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)["token_ids"]


def test_help_takes_less_than_half_a_second(tmp_path: Path) -> None:
    """Measured as processor time, which other work on the machine does not lengthen."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = _run("--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "--from_pretrained" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_one_question_from_another_directory(tmp_path: Path) -> None:
    assert _ids(_run(*ONE_SHOT, cwd=tmp_path)) == CASE["generated"]


def test_two_processes_give_the_same_tokens(tmp_path: Path) -> None:
    assert _ids(_run(*ONE_SHOT, cwd=tmp_path, launcher=TORCHRUN)) == CASE["generated"]


@pytest.mark.slow
def test_a_dialogue_through_a_pipe(tmp_path: Path) -> None:
    lines = ["none.png", str(IMAGE), CASE["query"], "clear", "", "Hello", "stop"]
    done = _run(*COMMON, cwd=tmp_path, typed="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    assert f"Model: {CASE['text']}\n" in done.stdout
    assert done.stdout.count("Model: ") == 2
    assert "error: Picture 'none.png' does not exist" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_processes_go_on_after_a_bad_picture(tmp_path: Path) -> None:
    lines = ["none.png", str(IMAGE), "", CASE["query"], "word " * 300, CASE["query"]]
    done = _run(*COMMON, cwd=tmp_path, launcher=TORCHRUN, typed="\n".join(lines) + "\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"Model: {CASE['text']}\n") == 2
    assert done.stderr.count("error: ") == 3


@pytest.mark.slow
def test_two_processes_end_after_a_bad_picture_in_one_shot(tmp_path: Path) -> None:
    done = _run(*COMMON, "--image", "none.png", "--query", "x", "--json", cwd=tmp_path, launcher=TORCHRUN)
    assert done.returncode != 0
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2 and lines[0].startswith("error: Picture 'none.png' does not exist")  # one of two processes,
    assert lines[1] == lines[0] == done.stderr.splitlines()[-1]  # at once, and behind all that torchrun has to say


@pytest.mark.slow
def test_exit_code_and_message(tmp_path: Path) -> None:
    done = _run(*COMMON, "--image", "none.png", "--query", "x", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: Picture 'none.png' does not exist")


@pytest.mark.slow
def test_the_older_script(tmp_path: Path) -> None:
    flags = ["--from_pretrained", str(GOLDEN), "--version", "base", "--english", "--bf16", "--no_prompt"]
    done = _run(*flags, cwd=tmp_path, script="cli_demo.py", typed=f"{IMAGE}\nstop\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Model: ") == 1
