"""Under load: 32 clients at once lose no request, and are served faster than one after the other."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_http import asked, data_url, running

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

CLIENTS, TOKENS = 32, 64


@pytest.mark.slow
def test_thirty_two_clients_for_a_minute() -> None:
    """ZOO_LOAD_SECONDS shortens the minute."""
    from sat_models.serving.api import create_app
    from sat_models.serving.core import Limits, ServerCore
    from sat_models.serving.metrics import Metrics
    from sat_models.zoo import load_pretrained

    seconds = float(os.environ.get("ZOO_LOAD_SECONDS", "60"))
    vlm = load_pretrained("cogvlm-tiny", device="cpu")
    metrics = Metrics()
    engine = vlm.engine()
    engine.end_ids = frozenset()  # every answer has all its tokens
    core = ServerCore(vlm, engine, names=["cogvlm-tiny"], limits=Limits(max_rows=CLIENTS), observer=metrics)
    messages = asked("Describe this image.", data_url())

    with running(create_app(core, metrics, on_shutdown=core.scheduler.close)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)

        def ask() -> int:
            reply = client.chat.completions.create(model="cogvlm-tiny", messages=messages, max_tokens=TOKENS)
            assert reply.usage.completion_tokens == TOKENS
            return TOKENS

        def keep_asking(_: int) -> list[int]:
            counts = []
            while time.monotonic() < end:
                counts.append(ask())
            return counts

        ask()
        start = time.monotonic()
        alone = sum(ask() for _ in range(4)) / (time.monotonic() - start)
        start = time.monotonic()
        end = start + seconds
        with ThreadPoolExecutor(CLIENTS) as pool:
            counts = list(pool.map(keep_asking, range(CLIENTS)))
        together = sum(map(sum, counts)) / (time.monotonic() - start)
        client.close()
    print(f"{sum(map(len, counts))} requests; alone {alone:.0f} tokens/s, {CLIENTS} clients {together:.0f} tokens/s")
    assert all(counts), "every client was answered"
    assert together >= 2 * alone
