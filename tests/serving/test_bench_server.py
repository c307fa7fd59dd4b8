"""The load generator, against a real server."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from serving_http import EXAMPLE, ROOT

from sat_models.bench.server_load import Question, Seen, table

SCRIPT = ROOT / "scripts" / "bench_server.py"


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *flags], capture_output=True, text=True, timeout=300)


def test_each_request_has_an_image_of_its_own_unless_told_otherwise() -> None:
    question = Question("m", "What?", EXAMPLE)
    assert question.messages(1) == question.messages(1) != question.messages(2)
    same = Question("m", "What?", EXAMPLE, same_image=True)
    assert same.messages(1) == same.messages(2)
    assert [part["type"] for part in Question("m", "What?", None).messages(1)[0]["content"]] == ["text"]


def test_percentiles_are_over_all_requests() -> None:
    row = Seen(seconds=2.0, first=[0.1] * 99 + [1.0], between=[0.01, 0.03], tokens=50, failed=["x"]).row("4")
    assert row == ("4", "50", "25", "100 ms", "100 ms", "109 ms", "20 ms", "29.8 ms", "1")
    assert table([row]).splitlines()[2] == "| " + " | ".join(row) + " |"


def test_a_server_of_ours_is_started_and_measured() -> None:
    done = run("--clients", "2", "--seconds", "1.5", "--every", "0.4", "--max_batch", "2", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 3 + 5 and [row[0] for row in rows[5:]] == [
        "| 2 of text, alone", "| 2 of text, images coming", "| images, one in 0.4 s",
    ]  # fmt: skip
    for row in (rows[2], *rows[5:]):
        assert float(row[1]) > 0 and float(row[2]) > 0 and re.fullmatch(r"[\d.e+]+ ms", row[3]) and row[-1] == "0 |"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--clients", "0"], "--clients is 0"),
        (["--seconds", "nan"], "--seconds is nan"),
        (["--image", "nowhere.png"], "there is no image nowhere.png; name one with --image"),
        (["--url", "http://127.0.0.1:9/v1", "--quant", "8"], "with --url no server is started that could read --quant"),
        (["--url", "http://127.0.0.1:9/v1"], "the server answered nothing: APIConnectionError"),
        (["--max_batch", "none"], "the server did not start; its message is above"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(flags: list[str], message: str) -> None:
    done = run(*flags)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
