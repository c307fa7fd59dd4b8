"""The API as OpenAI's own client sees it, over real HTTP, on the bundled model."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from serving_http import EXAMPLE, asked, data_url, running

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from sat_models.errors import InputError  # noqa: E402
from sat_models.generation.session import BatchSession  # noqa: E402
from sat_models.serving.api import create_app  # noqa: E402
from sat_models.serving.core import Limits, ServerCore  # noqa: E402
from sat_models.serving.images import ImagePolicy  # noqa: E402
from sat_models.serving.metrics import Metrics  # noqa: E402
from sat_models.zoo import VLM, load_pretrained  # noqa: E402

NAME = "cogvlm-tiny"
QUESTION = "Where is the red circle? answer in [[x0,y0,x1,y1]] format."


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_pretrained(NAME, device="cpu")


@pytest.fixture(scope="module")
def serve(vlm: VLM) -> Iterator[Callable[..., Any]]:
    """Starts servers on the model, one at a time."""
    from contextlib import contextmanager

    @contextmanager
    def start(*, keys: tuple[str, ...] = (), hosts: tuple[str, ...] = (), **limits: Any) -> Iterator[Any]:
        metrics = Metrics()
        core = ServerCore(
            vlm, vlm.engine(), names=[NAME], limits=Limits(**limits), observer=metrics,
            image_policy=ImagePolicy(hosts=hosts, timeout=2.0),
        )  # fmt: skip
        app = create_app(core, metrics, keys=keys, on_shutdown=core.scheduler.close)
        with running(app) as url:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key=keys[0] if keys else "none", max_retries=0, timeout=60)
            yield SimpleNamespace(url=url, core=core, client=client, ask=client.chat.completions.create)
            client.close()

    yield start


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any]) -> Iterator[Any]:
    """One server for the tests that change nothing about it."""
    with serve(max_rows=4, max_waiting=64, max_new_tokens=64) as started:
        yield started


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Makes each step take a tenth of a second, and notes when it began."""
    steps: list[float] = []
    step = BatchSession.step

    def slowly(self: BatchSession) -> dict[int, int]:
        steps.append(time.monotonic())
        time.sleep(0.1)
        return step(self)

    monkeypatch.setattr(BatchSession, "step", slowly)
    return steps


def idle(server: Any) -> bool:
    return server.core.scheduler.load == (0, 0)


def until(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def test_a_plain_answer_is_that_of_generate(server: Any, vlm: VLM) -> None:
    reply = server.ask(model=NAME, messages=asked(QUESTION, data_url()))
    expected = vlm.processor(EXAMPLE, QUESTION)
    (choice,) = reply.choices
    assert choice.message.content.startswith("[[") and choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert reply.usage.prompt_tokens == expected.length
    assert reply.usage.completion_tokens == len(vlm.processor.tokenizer.encode(choice.message.content))
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    (box,) = choice.message.boxes
    from PIL import Image

    with Image.open(EXAMPLE) as image:
        scale = [image.width, image.height] * 2
    assert box["box"] == pytest.approx(
        [value * size / 1000 for value, size in zip(box["normalized"], scale, strict=True)]
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_types_of_pictures(server: Any, kind: str) -> None:
    reply = server.ask(model=NAME, messages=asked("How many shapes are there?", data_url(kind=kind)), max_tokens=4)
    assert reply.choices[0].message.content.strip()


def test_the_first_chunk_comes_before_the_end(server: Any, slow: list[float]) -> None:
    stream = server.ask(
        model=NAME, messages=asked("Describe this image.", data_url()), stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    arrivals, text, reasons, usage, boxes = [], "", [], None, None
    for chunk in stream:
        if chunk.usage:
            usage = chunk.usage
        for choice in chunk.choices:
            if choice.delta.content:
                arrivals.append(time.monotonic())
                text += choice.delta.content
            reasons += filter(None, [choice.finish_reason])
            boxes = getattr(choice.delta, "boxes", boxes)
    assert len(arrivals) > 3
    assert arrivals[0] < slow[-1] - 0.2, "the first piece was here before the last steps were taken"
    assert reasons == ["stop"]
    assert usage.completion_tokens == len(slow) - 1, "the end token is no token of the answer"
    assert boxes == []
    plain = server.ask(model=NAME, messages=asked("Describe this image.", data_url()))
    assert plain.choices[0].message.content == text


def test_system_history_and_text_only(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    prepare = server.core.prepare
    monkeypatch.setattr(server.core, "prepare", lambda question: seen.append(question) or prepare(question))
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Is there"},
        {"role": "user", "content": "a circle?"},
    ]
    server.ask(model=NAME, messages=messages, max_tokens=3)
    assert (seen[0].query, list(seen[0].history)) == ("Is there\na circle?", [("Be short.\nHi", "Hello")])
    assert seen[0].options.max_new_tokens == 3
    server.ask(model=NAME, messages=[messages[0], messages[1]], max_completion_tokens=2)
    assert (seen[1].query, list(seen[1].history)) == ("Be short.\nHi", [])


def test_a_system_message_stands_where_the_prompt_style_has_a_place(server: Any, vlm: VLM) -> None:
    """As `generate(system=…)` and training put it; one that says nothing is the style's own."""
    user = {"role": "user", "content": "Is there a circle?"}
    for said in ("Be short.", ""):
        messages = [{"role": "system", "content": said}, user]
        got = server.ask(model=NAME, messages=messages, max_tokens=1, extra_body={"version": "llava_v1"})
        prompt = vlm.processor(None, user["content"], version="llava_v1", system=said or None)
        assert got.usage.prompt_tokens == prompt.length


def test_length_stop_seed_and_n(server: Any) -> None:
    messages = asked("Describe this image.", data_url())
    cut = server.ask(model=NAME, messages=messages, max_tokens=2)
    assert (cut.choices[0].finish_reason, cut.usage.completion_tokens) == ("length", 2)
    whole = server.ask(model=NAME, messages=messages).choices[0].message.content
    word = whole.split()[1]
    stopped = server.ask(model=NAME, messages=messages, stop=[word, "never"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole.partition(word)[0], "stop")
    sampled = {"temperature": 2.0, "seed": 3, "max_tokens": 8}
    three = [c.message.content for c in server.ask(model=NAME, messages=messages, n=3, **sampled).choices]
    assert len(set(three)) > 1, "each has a seed of its own"
    again = [c.message.content for c in server.ask(model=NAME, messages=messages, n=3, **sampled).choices]
    assert again == three
    alone = server.ask(model=NAME, messages=messages, **{**sampled, "seed": 4}).choices[0].message.content
    assert alone == three[1]
    streamed = ["", ""]
    for chunk in server.ask(model=NAME, messages=messages, n=2, stream=True, **sampled):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == three[:2]


def test_our_own_parameters(server: Any) -> None:
    messages = asked("How many shapes are there?", data_url())
    server.ask(model=NAME, messages=messages, extra_body={"version": "vqa", "top_k": 1, "repetition_penalty": 1.1})
    with pytest.raises(openai.BadRequestError, match="chatt"):
        server.ask(model=NAME, messages=messages, extra_body={"version": "chatt"})


def test_models_health_and_metrics(server: Any) -> None:
    assert [model.id for model in server.client.models.list()] == [NAME]
    assert server.client.models.retrieve(NAME).object == "model"
    with pytest.raises(openai.NotFoundError, match="does not run here"):
        server.client.models.retrieve("gpt-4")
    assert get(server, "/health") == (200, '{"status":"ok"}')
    status, ready = get(server, "/ready")
    assert status == 200 and json.loads(ready)["ready"]
    server.ask(model=NAME, messages=asked("Hi"), max_tokens=2)
    _, text = get(server, "/metrics")
    for name in ("zoo_requests_waiting", "zoo_first_token_seconds_count", "zoo_generated_tokens_total"):
        assert float(next(line for line in text.splitlines() if line.startswith(name)).split()[-1]) >= 0
    assert 'zoo_request_seconds_count{outcome="length"}' in text


def get(server: Any, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
    connection.request("GET", path)
    reply = connection.getresponse()
    return reply.status, reply.read().decode()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": ""}]}, "empty"),
    ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages.0.role"),
    ({"messages": [{"role": "assistant", "content": "Hi"}]}, "without a question"),
    ({"messages": [*asked("Hi"), {"role": "assistant", "content": "x"}]}, "last message"),
    ({"messages": asked("Hi", "file:///etc/passwd")}, "neither a data: nor"),
    ({"messages": asked("Hi", "/etc/passwd")}, "neither a data: nor"),
    ({"messages": asked("Hi", "examples/1.png")}, "neither a data: nor"),
    ({"messages": asked("Hi", "http://127.0.0.1:1/x.png")}, "does not fetch pictures"),
    ({"messages": asked("Hi", "data:image/png;base64,AAAA")}, "not a picture"),
    ({"messages": asked("Hi", "data:image/png;base64,!")}, "not base64"),
    ({"temperature": 3}, "temperature"),
    ({"top_p": -1}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"n": 9}, "at most 8"),
    ({"messages": asked("word " * 3000)}, "prompt takes"),
    ({"frequency_penalty": 1.0}, "'frequency_penalty' is not supported"),
    ({"top_logprobs": 2}, "'top_logprobs' needs 'logprobs'"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"extra_body": {"beams": 4}}, "beams"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
@pytest.mark.parametrize("stream", [False, True])
def test_bad_input_gets_400_with_a_message(server: Any, change: dict[str, Any], message: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        server.ask(**{"model": NAME, "messages": asked("Hi"), "stream": stream, **change})


def test_neutral_values_are_taken(server: Any) -> None:
    server.ask(
        model=NAME, messages=asked("Hi"), max_tokens=1, frequency_penalty=0, presence_penalty=0, logprobs=False,
        response_format={"type": "text"}, user="me", tools=[],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("how", "detail"),
    [
        pytest.param({"n": 1, "temperature": 0, "max_tokens": 16}, {"detail": "low"}, id="vlmeval/api/gpt.py"),
        pytest.param({"temperature": 0, "max_tokens": 16}, {}, id="lmms_eval/models/chat/openai.py"),
    ],
)
def test_requests_of_evaluation_kits(server: Any, how: dict[str, Any], detail: dict[str, str]) -> None:
    """The picture comes before or after the words."""
    image = {"type": "image_url", "image_url": {"url": data_url(kind="JPEG"), **detail}}
    words = {"type": "text", "text": "How many shapes are there?"}
    replies = [
        server.ask(model=NAME, messages=[{"role": "user", "content": parts}], **how)
        for parts in ([image, words], [words, image])
    ]
    said = {reply.choices[0].message.content for reply in replies}
    assert len(said) == 1 and said.pop().isdigit()


def test_an_unknown_model_and_an_unknown_path(server: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="Running: cogvlm-tiny"):
        server.ask(model="gpt-4", messages=asked("Hi"))
    status, text = get(server, "/v1/nothing")
    assert status == 404 and "error" in json.loads(text)


def test_a_body_that_is_no_json_or_too_large(serve: Callable[..., Any]) -> None:
    with serve(max_body=1000) as server:
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
        for body, status in ((b"{", 400), (b'{"x": "' + b"y" * 2000 + b'"}', 413)):
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            assert (reply.status, "message" in json.loads(reply.read())["error"]) == (status, True)
        chunks = (b"y" * 500 for _ in range(5))
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=10)
        connection.request(
            "POST", "/v1/chat/completions", chunks, {"Content-Type": "application/json"}, encode_chunked=True
        )
        assert connection.getresponse().status == 413


def test_keys(serve: Callable[..., Any]) -> None:
    with serve(keys=("sesame", "other")) as server:
        server.client.models.list()
        with pytest.raises(openai.AuthenticationError, match="missing or wrong"):
            server.client.with_options(api_key="sesam").models.list()
        assert get(server, "/v1/models")[0] == 401
        assert get(server, "/health")[0] == 200


def test_http_pictures_from_allowed_hosts(serve: Callable[..., Any]) -> None:
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(EXAMPLE.parent))

        def log_message(self, *args: object) -> None:
            pass

    files = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=files.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    port = files.server_address[1]
    with serve(hosts=(f"127.0.0.1:{port}",)) as server:
        remote = server.ask(model=NAME, messages=asked(QUESTION, f"http://127.0.0.1:{port}/{EXAMPLE.name}"))
        sent = server.ask(model=NAME, messages=asked(QUESTION, data_url()))
        assert remote.choices[0].message.content == sent.choices[0].message.content
        for url, message in (
            (f"http://127.0.0.1:{port}/missing.png", "404"),
            (f"http://localhost:{port}/{EXAMPLE.name}", "not allowed"),
            (f"http://127.0.0.1:{port + 1}/x.png", "not allowed"),
        ):
            with pytest.raises(openai.BadRequestError, match=message):
                server.ask(model=NAME, messages=asked(QUESTION, url))
        assert server.ask(model=NAME, messages=asked("Hi"), max_tokens=1).choices
    files.shutdown()
    files.server_close()


def test_health_while_every_thread_waits_for_a_picture(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting, over = [], threading.Event()

    def slow_host(self: ImagePolicy, url: str) -> Any:
        waiting.append(url)
        over.wait(30)
        raise InputError("no answer from that host")

    monkeypatch.setattr(ImagePolicy, "open", slow_host)
    with serve() as server, ThreadPoolExecutor(48) as pool:
        late = [pool.submit(server.ask, model=NAME, messages=asked("Hi", data_url())) for _ in range(48)]
        until(lambda: len(waiting) == 40)  # as many threads as the server has
        try:
            assert [get(server, path)[0] for path in ("/health", "/ready", "/metrics")] == [200] * 3
        finally:
            over.set()
        for each in late:
            with pytest.raises(openai.BadRequestError, match="no answer from that host"):
                each.result()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(serve: Callable[..., Any], slow: list[float], stream: bool) -> None:
    with serve(max_rows=1) as server:
        body = {"model": NAME, "messages": asked("Describe this image.", data_url()), "stream": stream}
        body |= {"temperature": 2.0, "seed": 1, "max_tokens": 60}
        payload = json.dumps(body).encode()
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port), timeout=10) as raw:
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            raw.sendall(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
            until(lambda: len(slow) >= 2)
        until(lambda: idle(server))
        steps = len(slow)
        assert steps < 20, "the answer was given up, not finished"
        assert server.ask(model=NAME, messages=asked("Hi"), max_tokens=1).choices
        assert 'outcome="cancelled"' in get(server, "/metrics")[1]


def test_clients_at_once_get_their_own_answers(server: Any) -> None:
    questions = ["How many shapes are there?", QUESTION, "Describe this image.", "Is there a red circle?"] * 3
    alone = {
        q: server.ask(model=NAME, messages=asked(q, data_url())).choices[0].message.content for q in set(questions)
    }

    def ask(question: str) -> str:
        return server.ask(model=NAME, messages=asked(question, data_url())).choices[0].message.content

    with ThreadPoolExecutor(len(questions)) as pool:
        assert list(pool.map(ask, questions)) == [alone[q] for q in questions]
    assert idle(server)


def test_a_full_queue_says_try_again(serve: Callable[..., Any], slow: list[float]) -> None:
    with serve(max_rows=1, max_waiting=1) as server, ThreadPoolExecutor(2) as pool:
        how = {"model": NAME, "messages": asked("Describe this image.", data_url())}
        first = pool.submit(server.ask, **how)
        until(lambda: server.core.scheduler.load == (0, 1))
        second = pool.submit(server.ask, **how)
        until(lambda: server.core.scheduler.load == (1, 1))
        with pytest.raises(openai.InternalServerError, match="waiting already") as refused:
            server.ask(**how)
        assert refused.value.status_code == 503 and refused.value.response.headers["retry-after"]
        assert first.result().choices and second.result().choices


def test_a_request_has_a_time_limit(serve: Callable[..., Any], slow: list[float]) -> None:
    with serve(seconds=0.25) as server:
        with pytest.raises(openai.InternalServerError, match=r"not finished within 0\.25 s") as late:
            server.ask(model=NAME, messages=asked("Describe this image.", data_url()))
        assert late.value.status_code == 504
        with pytest.raises(openai.APIError, match=r"not finished within 0\.25 s"):
            for _ in server.ask(model=NAME, messages=asked("Describe this image.", data_url()), stream=True):
                pass


def test_a_failure_of_the_model_is_said_and_survived(
    serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = BatchSession.step

    def fail_once(self: BatchSession) -> dict[int, int]:
        monkeypatch.setattr(BatchSession, "step", step)
        self.close()
        raise RuntimeError("out of memory")

    with serve() as server:
        monkeypatch.setattr(BatchSession, "step", fail_once)
        with pytest.raises(openai.InternalServerError, match="RuntimeError: out of memory"):
            server.ask(model=NAME, messages=asked("Hi"), max_tokens=2)
        assert server.ask(model=NAME, messages=asked("Hi"), max_tokens=2).choices


def test_shutdown_lets_answers_finish(serve: Callable[..., Any], slow: list[float]) -> None:
    with ThreadPoolExecutor(1) as pool:
        with serve() as server:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
            ask = client.chat.completions.create
            answer = pool.submit(ask, model=NAME, messages=asked("Describe this image.", data_url()))
            until(lambda: len(slow) >= 2)
        assert answer.result().choices[0].finish_reason == "stop"
    assert not server.core.scheduler.usable
