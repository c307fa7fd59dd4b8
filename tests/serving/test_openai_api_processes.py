"""The API server as a program, with one process and with two: start, a bad URL, the next answer, signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving_http import ROOT, asked, data_url

openai = pytest.importorskip("openai")
pytest.importorskip("uvicorn")

SCRIPT = str(ROOT / "scripts" / "openai_api.py")
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc-per-node=2"]
QUESTION = "How many shapes are there?"


@contextmanager
def program(*flags: str, launcher: list[str] | None = None, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running server and the address that it says."""
    command = [sys.executable, *(launcher or []), SCRIPT, "--port", "0", "--device", "cpu", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SAT_API_KEYS": ""}
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.extend(process.stderr), daemon=True)
    reader.start()
    try:
        line = process.stdout.readline()
        assert line.startswith("Serving cogvlm-tiny on http://127.0.0.1:"), (line, "".join(heard)[-3000:])
        yield process, line.split()[-1]
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
        reader.join(5)


def talk(url: str) -> str:
    """A bad request, then a good one, whole and streamed."""
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)
    ask = client.chat.completions.create
    for bad in ("http://127.0.0.1:1/none.png", "data:image/png;base64,AAAA"):
        with pytest.raises(openai.BadRequestError, match=r"does not fetch|not a picture"):
            ask(model="cogvlm-tiny", messages=asked(QUESTION, bad))
    whole = ask(model="cogvlm-tiny", messages=asked(QUESTION, data_url())).choices[0].message.content
    chunks = ask(model="cogvlm-tiny", messages=asked(QUESTION, data_url()), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    client.close()
    return whole


@pytest.mark.slow
def test_one_process(tmp_path: Path) -> None:
    with program(cwd=tmp_path) as (process, url):
        assert talk(url).isdigit()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_two_processes_answer_after_a_bad_url_and_end_together(tmp_path: Path) -> None:
    with program(launcher=TORCHRUN, cwd=tmp_path) as (process, url):
        assert talk(url).isdigit()
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert "Traceback" not in process.stdout.read()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--from_pretrained", "cogvlm-tinny"], "cogvlm-tiny"),
        (["--port", "70000"], "--port 70000 cannot be listened on"),
        (["--host", "203.0.113.7"], "--host 203.0.113.7"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_two(flags: list[str], message: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--port", "0", *flags], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_port_in_use_is_found_before_the_model_is_loaded(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, SCRIPT, "--port", port, "--from_pretrained", "/nowhere/at/all"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 2 and f"--port {port} cannot be listened on" in done.stderr
