"""A soak: good, bad, cancelled, slow and streaming clients at once, for minutes; nothing is lost, and nothing leaks.

`ZOO_SOAK_SECONDS` (default 120) says how long. Memory at the end is held against that after a warm-up, a quarter of it
and at most ten minutes.
"""

from __future__ import annotations

import gc
import http.client
import json
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from serving_http import EXAMPLE, ROOT, asked, data_url, running

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

CASES = ROOT / "tests" / "cases"
GROWTH = 1.05


class Soak:
    """What the clients do, and what came of it."""

    def __init__(self, host: str, answers: dict[str, str]) -> None:
        self.host, self.answers = host, answers
        self.over = threading.Event()
        self.count: Counter[str] = Counter()
        self.wrong: list[str] = []

    def body(self, question: str, **more: Any) -> dict[str, Any]:
        return {"model": "cogvlm-tiny", "messages": asked(question, data_url()), **more}

    def send(self, body: Any) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.host, timeout=120)
        try:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            connection.request("POST", "/v1/chat/completions", data, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            return reply.status, reply.read().decode()
        finally:
            connection.close()

    def good(self, rng: random.Random) -> None:
        question = rng.choice(sorted(self.answers))
        status, text = self.send(self.body(question, max_tokens=4096, parallel_tool_calls=True))
        said = json.loads(text)["choices"][0]["message"]["content"] if status == 200 else text
        if (status, said) != (200, self.answers[question]):
            self.wrong.append(f"good: {status} {said!r:.200}")

    def streaming(self, rng: random.Random) -> None:
        question = rng.choice(sorted(self.answers))
        status, text = self.send(self.body(question, stream=True))
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        said = "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in events[:-1])
        if (status, said, events[-1]) != (200, self.answers[question], "[DONE]"):
            self.wrong.append(f"streaming: {status} {text!r:.200}")

    def bad(self, rng: random.Random) -> None:
        status, text = self.send(rng.choice(BAD)(self))
        message = json.loads(text)["error"]["message"]
        if not 400 <= status < 500 or len(message) > 400:
            self.wrong.append(f"bad: {status} {message!r:.200}")

    def cancelled(self, rng: random.Random) -> None:
        """Leaves at some moment: before its body is whole, while it waits, within a stream."""
        payload = json.dumps(self.body("Describe this image.", stream=rng.random() < 0.5, n=2)).encode()
        host, port = self.host.split(":")
        with socket.create_connection((host, int(port)), timeout=120) as raw:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            whole = f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload
            raw.sendall(whole if rng.random() < 0.7 else whole[: len(whole) // 2])
            time.sleep(rng.random() * 0.5)

    def slow(self, rng: random.Random) -> None:
        """Sends its question in drops, and reads its answer so."""
        question = rng.choice(sorted(self.answers))
        payload = json.dumps(self.body(question, stream=True)).encode()
        host, port = self.host.split(":")
        with socket.create_connection((host, int(port)), timeout=120) as raw:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            raw.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n".encode())
            for start in range(0, len(payload), len(payload) // 8 + 1):
                raw.sendall(payload[start : start + len(payload) // 8 + 1])
                time.sleep(0.05)
            got = b""
            while piece := raw.recv(64):
                got += piece
                time.sleep(0.002)
        if b"[DONE]" not in got:
            self.wrong.append(f"slow: {got[-200:]!r}")

    def run(self, kind: str, seed: int) -> None:
        rng = random.Random(seed)
        while not self.over.is_set():
            try:
                getattr(self, kind)(rng)
            except Exception as error:
                self.wrong.append(f"{kind}: {type(error).__name__}: {error}")
                return
            self.count[kind] += 1


HALF = "\ud83d"
BAD: tuple[Callable[[Soak], Any], ...] = (
    lambda soak: b"{", lambda soak: b"\xff", lambda soak: [], lambda soak: {**soak.body("x"), "model": HALF},
    lambda soak: soak.body(HALF), lambda soak: soak.body("x", stop=["y"] * 100_000), lambda soak: soak.body("x", n=99),
    lambda soak: soak.body("x", temperature=9), lambda soak: soak.body("x", tools=[{}]), lambda soak: soak.body(""),
    lambda soak: soak.body("word " * 100_000), lambda soak: {**soak.body("x"), "messages": asked("x", "/etc/passwd")},
    lambda soak: {**soak.body("x"), "messages": asked("x", "data:image/png;base64,iVBORw0KGgo=")},
    lambda soak: (CASES / "requests" / "surrogate_body.json").read_bytes(),
    lambda soak: (CASES / "requests" / "long_history_700.json").read_bytes(),
)  # fmt: skip
CLIENTS = {"good": 3, "streaming": 2, "bad": 2, "cancelled": 2, "slow": 1}


def megabytes() -> float:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.slow
def test_minutes_of_every_kind_of_client() -> None:
    from sat_models.serving.api import create_app
    from sat_models.serving.core import Limits, ServerCore
    from sat_models.serving.metrics import Metrics
    from sat_models.zoo import load_pretrained

    seconds = float(os.environ.get("ZOO_SOAK_SECONDS", "120"))
    vlm = load_pretrained("cogvlm-tiny", device="cpu")
    questions = ("How many shapes are there?", "Is there a red circle?", "Describe this image.")
    answers = {question: vlm.generate(EXAMPLE, question).text for question in questions}
    metrics = Metrics()
    core = ServerCore(vlm, vlm.engine(), names=["cogvlm-tiny"], limits=Limits(max_rows=8), observer=metrics)
    with running(create_app(core, metrics, on_shutdown=core.scheduler.close)) as url:
        soak = Soak(urlsplit(url).netloc, answers)
        kinds = [kind for kind, clients in CLIENTS.items() for _ in range(clients)]
        threads = [threading.Thread(target=soak.run, args=(kind, seed)) for seed, kind in enumerate(kinds)]
        for thread in threads:
            thread.start()
        warm_up = min(seconds / 4, 600)
        time.sleep(warm_up)
        warm = megabytes()
        time.sleep(seconds - warm_up)
        soak.over.set()
        for thread in threads:
            thread.join(180)
        end = megabytes()
        deadline = time.monotonic() + 30
        while core.scheduler.load != (0, 0) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert core.scheduler.load == (0, 0), "places were not freed"
    print(f"{dict(soak.count)} in {seconds:g} s; {warm:.0f} MB after the warm-up, {end:.0f} at the end")
    assert not soak.wrong, soak.wrong[:10]
    assert set(soak.count) == set(CLIENTS), "every kind of client was served"
    assert end <= warm * GROWTH
