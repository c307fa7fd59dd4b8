"""Through the API as in a chat: what was computed for a picture and a history is not computed again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from serving_http import ROOT, asked, data_url

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient

from sat_models.serving.api import create_app
from sat_models.serving.core import ServerCore
from sat_models.serving.metrics import Metrics
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

NAME = "cogvlm-tiny"
ONE, TWO = ROOT / "examples" / "1.png", ROOT / "examples" / "2.png"


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_pretrained(NAME, device="cpu", dtype="float32")


@pytest.fixture
def client(vlm: VLM) -> Iterator[TestClient]:
    core = ServerCore(vlm, vlm.engine(keep_prefixes=4, prefix_bytes=2**30), names=[NAME])
    yield TestClient(create_app(core, Metrics()))
    core.scheduler.close()


def ask(client: TestClient, messages: list[dict[str, Any]], **more: Any) -> tuple[str, int, int]:
    """The answer, the tokens of its prompt, and how many of them were computed."""
    body = {"model": NAME, "messages": messages, "max_tokens": 24, **more}
    reply = client.post("/v1/chat/completions", json=body).json()
    usage = reply["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return reply["choices"][0]["message"]["content"], usage["prompt_tokens"], usage["prompt_tokens"] - cached


def test_a_second_question_about_a_picture_computes_the_question(client: TestClient, vlm: VLM) -> None:
    queries = ("What shape is left of the circle?", "How many shapes are there?", "Describe this image.")
    expected = {(q, p): vlm.generate(p, q, max_new_tokens=24).text for q in queries for p in (ONE, TWO)}
    towers: list[int] = []
    handle = vlm.model.get_submodule("mixins.eva.vit_model").register_forward_pre_hook(
        lambda module, args: towers.append(len(args[0]))
    )
    try:
        computed = []
        for query in queries:
            for path in (ONE, TWO):  # two clients by turns
                text, length, made = ask(client, asked(query, data_url(path)))
                assert text == expected[query, path]
                computed.append(made / length)
    finally:
        handle.remove()
    assert computed[:2] == [1.0, 1.0]
    assert max(computed[2:]) <= 0.2
    assert towers == [1, 1], "each picture is looked at once"


def test_the_next_turn_of_a_conversation_computes_what_is_new(client: TestClient, vlm: VLM) -> None:
    messages = asked("Describe this image.", data_url(ONE))
    said = vlm.generate(ONE, "Describe this image.", max_new_tokens=24).text
    following = vlm.generate(ONE, "How many shapes are there?", [("Describe this image.", said)], max_new_tokens=24)
    first, length, computed = ask(client, messages)
    assert (first, computed) == (said, length)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "How many shapes are there?"}]
    second, longer, computed = ask(client, messages)
    assert second == following.text
    assert computed <= longer - length + 2, "words at the border may be cut otherwise"


def test_several_answers_to_one_question_and_a_streamed_one(client: TestClient) -> None:
    messages = asked("Describe this image.", data_url(TWO))
    _, length, computed = ask(client, messages, n=3, temperature=1.0, seed=1)
    assert computed == length
    assert ask(client, messages)[2] == 1
