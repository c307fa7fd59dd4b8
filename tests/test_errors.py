"""The one ending of all commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sat_models.errors import ConfigError, run_script

ROOT = Path(__file__).resolve().parents[1]


def fail(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize(
    ("main", "code"),
    [
        (lambda: 0, 0),
        (lambda: None, 0),
        (lambda: 3, 3),
        (lambda: fail(ConfigError("--x is 1")), 2),
        (lambda: fail(FileNotFoundError(2, "No such file or directory", "/nowhere/x")), 2),
        (lambda: fail(KeyboardInterrupt()), 130),
        (lambda: fail(SystemExit(2)), 2),
    ],
)
def test_the_exit_code_says_how_it_ended(main, code: int) -> None:
    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert stop.value.code == code


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return 0", 0),
        ("raise ConfigError('--x is 1')", 2),
        ("raise RuntimeError('a bug')", 1),
        ("sys.exit(7)", 7),
        ("sys.exit('no')", 1),
    ],
)
def test_a_process_of_a_job_skips_the_teardown_that_may_abort_it(body: str, code: int) -> None:
    # An object in a module is destroyed in the teardown; a function registered in `main` runs before.
    program = f"""
import atexit, sys
from sat_models.errors import ConfigError, run_script

class Loud:
    def __del__(self):
        print("torn down", flush=True)

kept = Loud()

def main():
    atexit.register(print, "registered")
    print("said", end=" ")
    {body}

run_script(main)
"""
    env = {**os.environ, "WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, timeout=120)
    assert run.returncode == code, run.stderr
    assert run.stdout == "said registered\n"
    assert ("error: --x is 1" in run.stderr) == (code == 2)
    assert ("a bug" in run.stderr) == ("RuntimeError" in body)
    alone = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**env, "WORLD_SIZE": "1"}, timeout=120
    )
    assert alone.returncode == code
    assert "torn down" in alone.stdout


def test_under_torchrun_the_reason_is_the_last_line(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(
        "from sat_models.errors import InputError, run_script\n\n\n"
        "def main() -> int:\n    raise InputError('this image\\nis none')\n\n\nrun_script(main)\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script)], cwd=Path(__file__).resolve().parents[1], capture_output=True,
        text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode
    assert done.stderr.rstrip().split("\n")[-1] == "error: this image is none"
    assert done.stderr.count("error: this image is none") == 2, "at once, and behind what the launcher says"
