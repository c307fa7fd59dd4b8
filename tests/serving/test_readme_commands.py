"""README's section "Serve it": its commands start what they say, on a port of the test's choosing."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Serve it")[2].partition("\n## ")[0]
COMMANDS = [line.split("#")[0].strip() for line in re.findall(r"```bash\n(.*?)```", SECTION, re.S)[0].splitlines()]


def test_the_section_has_three_commands() -> None:
    assert len(COMMANDS) == 3 and COMMANDS[0] == 'pip install -e ".[serve]"'


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_it_serves(command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "python"
    process = subprocess.Popen(
        [sys.executable, *words[1:], "--port", "0", "--device", "cpu"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    heard: list[str] = []
    reader = threading.Thread(target=lambda: heard.extend(process.stderr), daemon=True)
    reader.start()
    try:
        said = next((line for line in process.stdout if "http://" in line), "")
        address = re.search(r"http://127\.0\.0\.1:\d+", said)
        assert address, (said, "".join(heard)[-3000:])
        with urllib.request.urlopen(
            f"{address.group()}{'/v1/models' if 'api' in command else '/'}", timeout=60
        ) as reply:
            assert reply.status == 200 and reply.read()
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
        reader.join(5)
