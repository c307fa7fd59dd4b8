"""What real clients send beside the question, what strangers send instead of one, and what each of them reads back."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from serving_http import EXAMPLE, ROOT, asked, data_url, running

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from sat_models.processing.prompts import build_prompt
from sat_models.serving.api import create_app
from sat_models.serving.core import Limits, ServerCore
from sat_models.serving.images import ImagePolicy
from sat_models.serving.metrics import Metrics
from sat_models.zoo import VLM, load_pretrained

NAME = "cogvlm-tiny"
CASES = ROOT / "tests" / "cases" / "requests"
FLAGS = ("--", "max_length", "no_prompt")


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_pretrained(NAME, device="cpu")


@pytest.fixture(scope="module")
def server(vlm: VLM) -> Iterator[SimpleNamespace]:
    metrics = Metrics()
    core = ServerCore(vlm, vlm.engine(), names=[NAME], limits=Limits(max_rows=4, max_new_tokens=4), observer=metrics)
    app = create_app(core, metrics, origins=["https://chat.example.org"], on_shutdown=core.scheduler.close)
    with running(app) as url:
        yield SimpleNamespace(host=urlsplit(url).netloc, core=core)


@pytest.fixture
def call(server: SimpleNamespace) -> Callable[..., SimpleNamespace]:
    """Sends a request and reads the whole answer."""

    def send(
        body: Any = None, path: str = "/v1/chat/completions", method: str = "POST", **headers: str
    ) -> SimpleNamespace:
        connection = http.client.HTTPConnection(server.host, timeout=60)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {
            "Content-Type": "application/json",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        connection.request(method, path, data if method == "POST" else None, sent)
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        return SimpleNamespace(status=reply.status, text=text, headers=reply.headers)

    return send


def question(**more: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": asked("Hi"), "max_tokens": 1, **more}


def said(reply: SimpleNamespace) -> str:
    """The message of a refusal, which is short and speaks of no flag."""
    message = json.loads(reply.text)["error"]["message"]
    assert len(message) < 400 and not any(flag in message for flag in FLAGS), message
    return message


NOTHING = [
    *({name: None} for name in ("audio", "prediction", "reasoning", "reasoning_effort", "tools", "stop", "seed", "n")),
    {"stream_options": {"include_usage": None}}, {"parallel_tool_calls": True}, {"parallel_tool_calls": False},
    {"tool_choice": "auto"}, {"tool_choice": "none"}, {"tools": []}, {"function_call": "auto"}, {"echo": False},
    {"best_of": 1}, {"top_k": -1}, {"top_k": 0}, {"logit_bias": {}}, {"logprobs": False}, {"min_p": 0.0},
    {"logprobs": False, "top_logprobs": 0}, {"logprobs": None, "top_logprobs": None}, {"top_logprobs": 0},
    {"modalities": ["text"]}, {"response_format": {"type": "text"}}, {"store": False}, {"service_tier": "auto"},
    {"something_new": None}, {"verbosity": "medium"}, {"max_tokens": None, "max_completion_tokens": 1},
    {"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning": {"effort": "none"}}, {"extra_body": {}},
    {"min_tokens": 0, "stop_token_ids": [], "include_stop_str_in_output": False, "add_generation_prompt": True},
    {"thinking": {"type": "disabled"}}, {"num_beams": 1, "repeat_penalty": 1.0, "mirostat": 0}, {"seed": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("more", NOTHING, ids=str)
def test_what_asks_for_nothing_is_let_through(call: Callable[..., Any], more: dict[str, Any]) -> None:
    reply = call(question(**more))
    assert reply.status == 200, reply.text


SOMETHING = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "'tools' is not supported"),
    ({"tool_choice": "required"}, "'tool_choice' is not"), ({"best_of": 2}, "'best_of'"), ({"echo": True}, "'echo'"),
    ({"top_k": -2}, "top_k"), ({"modalities": ["text", "audio"]}, "'modalities'"), ({"audio": {"voice": "x"}}, "audio"),
    ({"reasoning_effort": "high"}, "'reasoning_effort'"), ({"min_p": 0.1}, "'min_p'"), ({"beams": 4}, "beams"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}, *asked("Hi")]}, "'tool_calls' is not"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
    ({f"x{number}": 1 for number in range(1000)}, "and 997 more"), ({"x" * 10_000: 1}, "xxx"),
    ({"version": "v" * 10_000}, "Unknown prompt version"), ({"min_tokens": 2}, "'min_tokens'"),
    ({"chat_template_kwargs": {"enable_thinking": True}}, "'chat_template_kwargs'"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 1}, "needs 'logprobs': true"), ({"logprobs": 5}, "logprobs"),
    ({"logprobs": "true"}, "logprobs"), ({"logprobs": True, "top_logprobs": True}, "top_logprobs: it is true"),
    *(({name: True}, f"{name}: it is true; it must be") for name in ("max_tokens", "n", "seed", "temperature")),
    ({"top_k": False}, "top_k: it is false"), ({"metadata": {f"{n}": "x" for n in range(200_000)}}, "metadata"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "message"), SOMETHING, ids=[message for _, message in SOMETHING])
def test_what_asks_for_something_else_is_refused(call: Callable[..., Any], more: dict[str, Any], message: str) -> None:
    reply = call(question(**more))
    assert reply.status == 400 and message in said(reply)


def with_parts(*parts: Any) -> dict[str, Any]:
    return question(messages=[{"role": "user", "content": list(parts)}])


WORDS = {"type": "text", "text": "Hi"}
FORMS = [
    {"type": "image_url", "image_url": data_url()},
    {"type": "image_url", "image_url": {"url": data_url(), "format": "image/png"}},
    {
        "type": "image_url",
        "image_url": {"url": data_url(), "detail": "original"},
        "cache_control": {"type": "ephemeral"},
    },
    {"type": "image_url", "image_url": {"url": " " + data_url().rstrip("="), "detail": None}, "text": None},
    {"type": "image_url", "image_url": {"url": data_url().replace("+", "-").replace("/", "_").replace("_", "/", 1)}},
]


@pytest.mark.parametrize("part", FORMS, ids=range(len(FORMS)))
def test_forms_of_an_image_part(call: Callable[..., Any], server: Any, part: dict[str, Any]) -> None:
    reply = call(with_parts({**WORDS, "cache_control": {"type": "ephemeral"}}, part))
    assert reply.status == 200, reply.text
    assert json.loads(reply.text)["usage"]["prompt_tokens"] > 60, "the image is in the prompt"


BAD_PARTS = [
    ({"type": "video_url", "video_url": {"url": "x"}}, "part 0.type is 'video_url'; allowed: text, image_url"),
    ({"type": "input_image", "image_url": data_url()}, "part 0.type is 'input_image'"),
    ("Hi", "part 0 is 'Hi'; a part is an object"), (None, "part 0 is None"), ({"text": "x"}, "part 0.type is None"),
    ({"type": "text"}, "part 0.text is missing"), ({"type": "text", "text": ["x"]}, "part 0.text is ['x']"),
    ({"type": "image_url"}, "part 0.url is missing"), ({"type": "image_url", "image_url": 3}, "part 0.url is 3"),
    ({"type": "image_url", "image_url": {}}, "part 0.image_url.url is missing"),
    ({"type": "image_url", "image_url": {"url": "x", "detail": "huge"}}, "detail is 'huge'; allowed: auto, low"),
    ({"type": "image_url", "image_url": {"url": "x", "crop": [1]}}, "part 0.image_url has crop"),
    ({"type": "text", "text": "x", "bold": True}, "part 0 has bold"), ({"type": ["text"], "text": ""}, "part 0.type"),
]  # fmt: skip


@pytest.mark.parametrize(("part", "message"), BAD_PARTS, ids=[message for _, message in BAD_PARTS])
def test_a_bad_part_gets_one_short_line(call: Callable[..., Any], part: Any, message: str) -> None:
    reply = call(with_parts(part))
    assert reply.status == 400 and message in said(reply) and "messages.0.content" in said(reply)


def test_an_image_without_words_is_told_what_is_missing(call: Callable[..., Any]) -> None:
    reply = call(with_parts({"type": "image_url", "image_url": {"url": data_url()}}))
    assert reply.status == 400 and "Add a text part" in said(reply)


def prompt_tokens(processor: Any, words: str) -> int:
    text = build_prompt(processor.style(), words)
    return processor.prompt_length(len(processor.tokenizer.encode(text)))


def test_more_tokens_than_there_are_are_clamped_and_said(call: Callable[..., Any], server: Any) -> None:
    """Agents and lmms-eval ask for 4096 at every call."""
    messages = asked("Describe this image.", data_url())
    reply = call(question(messages=messages, max_tokens=4096))
    answer = json.loads(reply.text)
    assert reply.status == 200 and reply.headers["X-Max-Tokens"] == "4"
    assert answer["choices"][0]["finish_reason"] == "length" and answer["usage"]["completion_tokens"] == 4
    assert call(question(max_tokens=3)).headers["X-Max-Tokens"] == "3"
    streamed = call(question(max_completion_tokens=10**30, stream=True))
    assert streamed.headers["X-Max-Tokens"] == "4" and streamed.text.endswith("data: [DONE]\n\n")
    processor = server.core.processor
    counts = range(processor.max_length, 0, -1)
    words = next(text for n in counts if prompt_tokens(processor, text := "a " * n) == processor.max_length - 2)
    reply = call(question(messages=asked(words), max_tokens=4096))
    assert reply.status == 200 and reply.headers["X-Max-Tokens"] == "2", "what the context leaves"


def test_what_does_not_fit_is_said_without_flags(call: Callable[..., Any]) -> None:
    for words in ("word " * 3000, "word " * 1_000_000):
        start = time.monotonic()
        reply = call(question(messages=asked(words)))
        assert reply.status == 400 and "Shorten the question" in said(reply)
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("turns", [700, 20_000])
def test_a_long_history_is_refused_at_once(call: Callable[..., Any], turns: int) -> None:
    body = json.loads((CASES / "long_history_700.json").read_text())
    assert len(body["messages"]) == 1401
    body["messages"] = [*body["messages"][:2] * turns, body["messages"][-1]]
    start = time.monotonic()
    reply = call(body)
    assert reply.status == 400 and "The prompt takes" in said(reply)
    assert time.monotonic() - start < 5


def test_stop_strings_are_at_most_four(call: Callable[..., Any]) -> None:
    assert call(question(stop=["a", "b", "c", "d"])).status == 200
    for many in (5, 500_000):
        start = time.monotonic()
        reply = call(question(stop=["x"] * many))
        assert reply.status == 400 and "at most 4" in said(reply) and f"{many} stop strings" in said(reply)
        assert time.monotonic() - start < 5
    for bad in (3, [3], {"a": 1}, [None]):
        assert "a string or a list of strings" in said(call(question(stop=bad)))


HALF = "a \ud83d b"
HALVES = [
    (json.loads((CASES / "surrogate_body.json").read_text()), "messages.0.content"),
    (question(model=HALF), "model holds half"), (question(version=HALF), "version holds half"),
    (question(stop=[HALF]), "stop.0 holds half"), (question(user=HALF), "user holds half"),
    (question(metadata={"a": HALF}), "metadata.a holds half"), (question(metadata={HALF: "a"}), "a name in metadata"),
    (question(messages=asked("Hi", HALF)), "messages.0.content.0.image_url.url holds half"),
    (question(messages=asked("Hi", f"data:{HALF},AAAA")), "image_url.url holds half"),
    (question(messages=[{"role": HALF, "content": "x"}]), "messages.0.role holds half"),
    ({HALF: 1}, "a name in the body holds half"), (HALF, "dictionary"), ([HALF], "dictionary"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message"), HALVES, ids=[message for _, message in HALVES])
@pytest.mark.parametrize("stream", [False, True])
def test_text_that_cannot_be_utf8_names_its_field(
    call: Callable[..., Any], body: Any, message: str, stream: bool
) -> None:
    reply = call({**body, "stream": stream} if isinstance(body, dict) else body)
    assert reply.status == 400 and message in said(reply)


def test_a_large_body_is_read_beside_the_others(call: Callable[..., Any]) -> None:
    """6 MB of numbers in a field that nobody asked for: refused, while the server goes on answering."""
    big = json.dumps(question())[:-1].encode() + b', "beams": [' + b"0," * 3_000_000 + b"0]}"
    replies: list[SimpleNamespace] = []
    sender = threading.Thread(target=lambda: replies.append(call(big)))
    sender.start()
    slowest = 0.0
    while sender.is_alive():
        start = time.monotonic()
        assert call(path="/health", method="GET").status == 200
        slowest = max(slowest, time.monotonic() - start)
    assert replies[0].status == 400 and "beams" in said(replies[0])
    assert slowest < 5


def test_only_json_is_read(call: Callable[..., Any]) -> None:
    """A page of another host may send text without asking, JSON it may not."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert "Content-Type" in said(call(question(), Content_Type=kind))
    assert call(question(), Content_Type="application/json; charset=utf-8").status == 200


def test_the_form_of_a_body_is_published(call: Callable[..., Any]) -> None:
    page = json.loads(call(path="/openapi.json", method="GET").text)
    schema = page["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"model", "messages", "stop", "version"} <= set(schema["properties"])
    place = schema["properties"]["messages"]["items"]["$ref"].removeprefix("#/").split("/")
    for name in place:
        page = page[name.replace("~1", "/")]
    assert "role" in page["properties"]


def test_bytes_that_are_no_text(call: Callable[..., Any]) -> None:
    whole = json.dumps(question()).encode()
    for body in (b"", b"\xff\xfe{}", whole.replace(b"Hi", b"\xed\xa0\x80"), b"[" * 100_000, whole[:-1]):
        assert call(body).status == 400
    assert call(b'{"seed": ' + b"9" * 10_000 + b"}").status == 400
    for name in ("temperature", "top_p", "repetition_penalty", "top_k", "max_tokens"):
        for value in (b"NaN", b"Infinity", b"-Infinity", b'"x"', b"[]", b"true1"):
            assert call(whole[:-1] + f', "{name}": '.encode() + value + b"}").status == 400


def test_paths_and_models_that_are_not_there(call: Callable[..., Any]) -> None:
    for path, method in (("/v1/completions", "POST"), ("/v1/%ED%A0%80", "GET"), ("/v1/chat/completions", "GET")):
        reply = call(question(), path=path, method=method)
        error = json.loads(reply.text)["error"]
        assert reply.status in (404, 405) and error["code"] is None and "/v1/models" in error["message"]
    for path in ("/v1/models/gpt-4", "/v1/models/%ED%A0%80", "/v1/models/" + "x" * 5000):
        reply = call(path=path, method="GET")
        assert reply.status == 404 and json.loads(reply.text)["error"]["code"] == "model_not_found"
        assert "Running: cogvlm-tiny" in said(reply)


def test_a_path_of_the_server_is_no_image(
    call: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`" data:x.png"` was refused as no path by one part and opened as one by another."""
    monkeypatch.chdir(tmp_path)
    for name in (" data:x.png", "data:x.png", " data:,x.png", "x.png"):
        (tmp_path / name).write_bytes(EXAMPLE.read_bytes())
        reply = call(with_parts(WORDS, {"type": "image_url", "image_url": {"url": name}}))
        assert reply.status == 400 and ("comma" in said(reply) or "neither" in said(reply) or "not a" in said(reply))
        reply = call(with_parts(WORDS, {"type": "image_url", "image_url": {"url": f"file://{tmp_path}/{name}"}}))
        assert reply.status == 400 and "neither a data: nor" in said(reply)


def test_pages_of_other_hosts(call: Callable[..., Any]) -> None:
    preflight = {"Origin": "https://chat.example.org", "Access-Control-Request-Method": "POST"}
    reply = call(method="OPTIONS", **preflight, Access_Control_Request_Headers="authorization,content-type")
    assert reply.status == 200 and reply.headers["Access-Control-Allow-Origin"] == "https://chat.example.org"
    for body, status in ((question(), 200), (question(top_k=-5), 400)):
        reply = call(body, Origin="https://chat.example.org")
        assert (reply.status, reply.headers["Access-Control-Allow-Origin"]) == (status, "https://chat.example.org")
    assert call(question(), Origin="https://evil.example.org").headers["Access-Control-Allow-Origin"] is None


def test_a_client_that_leaves_within_its_body_is_no_fault_of_ours(
    server: SimpleNamespace, call: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        connection = http.client.HTTPConnection(server.host, timeout=10)
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b'{"model": ')
        connection.close()
    assert call(question()).status == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_client_that_leaves_while_its_images_are_fetched(
    server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next image is not fetched, its prompt not made."""
    opened, seen = [], threading.Event()

    def slow(self: ImagePolicy, url: str) -> Any:
        opened.append(url)
        seen.set()
        time.sleep(0.5)
        return open_(self, url)

    open_ = ImagePolicy.open
    monkeypatch.setattr(ImagePolicy, "open", slow)
    prepared: list[object] = []
    monkeypatch.setattr(server.core, "prepare", prepared.append)
    image = {"type": "image_url", "image_url": {"url": data_url()}}
    body = json.dumps(with_parts(WORDS, image, image, image)).encode()
    connection = http.client.HTTPConnection(server.host, timeout=10)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    assert seen.wait(10)
    connection.close()
    time.sleep(1.5)
    assert len(opened) < 3 and not prepared
