"""OpenAI's images API as OpenAI's own client sees it, over real HTTP, on a golden painter."""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from PIL import Image
from serving_http import EXAMPLE, asked, data_url, running

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from drawing_place import LONG, golden_painter  # noqa: E402

from sat_models.serving.api import create_app  # noqa: E402
from sat_models.serving.core import ServerCore  # noqa: E402
from sat_models.serving.drawings import Drawing  # noqa: E402
from sat_models.serving.metrics import DrawingMetrics, Metrics  # noqa: E402
from sat_models.serving.studio import DrawingLimits, Studio  # noqa: E402
from sat_models.zoo import Painter, load_pretrained  # noqa: E402

NAME, PROMPT = "painter", "A red circle"
HOW: dict[str, Any] = {"size": "96x64", "extra_body": {"steps": 3, "seed": 7}}


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Painter:
    return golden_painter(tmp_path_factory.mktemp("painter"))


@pytest.fixture(scope="module")
def serve(painter: Painter) -> Callable[..., Any]:
    """Starts servers on the painter, one at a time."""

    @contextmanager
    def start(vlm: Any = None, **limits: Any) -> Iterator[Any]:
        talking = Metrics() if vlm else None
        metrics = DrawingMetrics(talking.registry if talking else None)
        studio = Studio(painter, names=[NAME], limits=DrawingLimits(**limits), observer=metrics)
        core = ServerCore(vlm, vlm.engine(), names=["cogvlm-tiny"], observer=talking) if vlm else None
        with running(create_app(core, talking or metrics, studio=studio, on_shutdown=studio.close)) as url:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
            yield SimpleNamespace(url=url, studio=studio, client=client, draw=client.images.generate)
            client.close()
        if core:
            core.scheduler.close()

    return start


@pytest.fixture(scope="module")
def server(serve: Callable[..., Any]) -> Iterator[Any]:
    """One server for the tests that change nothing about it."""
    with serve(most=4) as started:
        yield started


@pytest.fixture
def slow(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Makes each step take a tenth of a second; gives the prompts whose drawing began."""
    begun: list[str] = []
    steps = painter.steps

    def slowly(prompt: str, **options: Any) -> Iterator[Any]:
        begun.append(prompt)
        for state in steps(prompt, **options):
            time.sleep(0.1)
            yield state

    monkeypatch.setattr(painter, "steps", slowly)
    return begun


def decoded(image: Any) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(image.b64_json)))


def fetch(url: str) -> Any:
    with urllib.request.urlopen(url) as answer:
        return answer.read().decode()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_images_are_those_of_draw(server: Any, painter: Painter) -> None:
    answer = server.draw(model=NAME, prompt=PROMPT, n=2, response_format="b64_json", **HOW)
    assert answer.size == "96x64" and answer.output_format == "png" and abs(answer.created - time.time()) < 60
    assert [image.seed for image in answer.data] == [7, 8]
    for image, seed in zip(answer.data, (7, 8), strict=True):
        wanted = painter.draw(PROMPT, size=(96, 64), steps=3, seed=seed)
        assert decoded(image).format == "PNG" and decoded(image).tobytes() == wanted.tobytes()
    given = {"steps": 3, "seed": 7, "guidance": 1}
    again = server.draw(prompt=PROMPT, size="96x64", extra_body={**given, "sampler": "sat"}).data[0]
    wanted = painter.draw(PROMPT, size=(96, 64), **given)
    assert decoded(again).tobytes() == wanted.tobytes(), "without a model's name it is the painter"
    usual = server.draw(prompt=PROMPT, size="auto", quality="auto", background="opaque", extra_body={"steps": 1})
    assert decoded(usual.data[0]).size == painter.config.usual_size and isinstance(usual.data[0].seed, int)


@pytest.mark.parametrize(("kind", "form"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_other_file_types(server: Any, kind: str, form: str) -> None:
    small, large = (
        server.draw(prompt=PROMPT, output_format=kind, output_compression=quality, **HOW).data[0] for quality in (5, 95)
    )
    assert decoded(small).format == form and len(small.b64_json) < len(large.b64_json)


def test_a_prompt_that_is_cut_says_so(server: Any) -> None:
    cut = server.draw(prompt=LONG, **HOW).data[0]
    assert cut.cut.endswith("triangle") and not hasattr(server.draw(prompt=PROMPT, **HOW).data[0], "cut")


def test_a_stream_has_previews_and_the_image(server: Any) -> None:
    how = {"size": "96x64", "extra_body": {"steps": 6, "seed": 7}}
    events = list(server.draw(prompt=PROMPT, stream=True, partial_images=2, **how))
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds == ["partial_image", "partial_image", "completed"]
    assert [(event.partial_image_index, event.step, event.of) for event in events[:2]] == [(0, 2, 6), (1, 4, 6)]
    whole = server.draw(prompt=PROMPT, **how).data[0]
    assert events[-1].b64_json == whole.b64_json and events[-1].seed == 7 and events[-1].size == "96x64"
    assert decoded(events[0]).size == (96, 64) and events[0].b64_json != events[1].b64_json
    several = server.draw(prompt=PROMPT, stream=True, partial_images=1, n=2, **HOW)
    assert [event.type.rpartition(".")[2] for event in several] == ["partial_image", "completed"] * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": ""}, "say what is to be seen"),
        ({"prompt": " \n"}, "say what is to be seen"),
        ({"prompt": "a \ud83d b"}, "half of a surrogate pair"),
        ({"prompt": None}, "prompt: Field required"),
        ({"size": "100x64"}, "100x64 cannot be drawn: width and height are multiples of 32"),
        ({"size": "96x4096"}, "nearest sides are 96x256"),
        ({"size": "256x256", "n": 5}, "5 images were asked for; this server draws 1 to 4"),
        ({"size": "large"}, "size is 'large'; it must be WIDTHxHEIGHT"),
        ({"size": f"{'9' * 5000}x64"}, "it must be WIDTHxHEIGHT"),
        ({"n": 0}, "n: Input should be greater than or equal to 1"),
        ({"steps": 0}, "steps: Input should be greater than or equal to 1"),
        ({"steps": 1001}, "steps is 1001; it must be a whole number from 1 to 1000"),
        ({"steps": True}, "steps: it is true; it must be a number"),
        ({"guidance": -1}, "guidance: Input should be greater than or equal to 0"),
        ({"seed": 2**70}, "seed is 1180591620717411303424; it must be a whole number from 0"),
        ({"sampler": "euler"}, "sampler is 'euler'; allowed: sat, diffusers"),
        ({"response_format": "url"}, "this server keeps no images: ask for 'b64_json'"),
        ({"output_format": "gif"}, "output_format: Input should be 'png', 'jpeg' or 'webp'"),
        ({"output_compression": 50}, "'output_compression' is for 'output_format' jpeg and webp"),
        ({"partial_images": 2}, "'partial_images' needs 'stream': true"),
        ({"style": "natural"}, "'style' is not supported by these models"),
        ({"background": "transparent"}, "'background' is not supported"),
        ({"num_inference_steps": 3}, "num_inference_steps: Extra inputs are not permitted"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_is_refused(server: Any, given: dict[str, Any], message: str) -> None:
    """As OpenAI's client reads errors, before any work, and with nothing of our command line in them."""
    before = fetch(f"{server.url}/metrics")
    body = {"prompt": PROMPT, "size": "96x64", "steps": 1, **given}
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    connection.request("POST", "/v1/images/generations", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    error = json.loads(answer.read())["error"]
    connection.close()
    assert answer.status == 400 and error["type"] == "invalid_request_error"
    assert message in error["message"] and "--" not in error["message"] and len(error["message"]) < 500
    assert fetch(f"{server.url}/metrics") == before


def test_errors_as_the_client_raises_them(server: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="cannot be drawn"):
        server.draw(prompt=PROMPT, size="512x512")
    with pytest.raises(openai.NotFoundError, match=r"'dall-e-3' does not run here. Running: painter\."):
        server.draw(prompt=PROMPT, model="dall-e-3")
    with pytest.raises(openai.NotFoundError, match=r"no POST /v1/chat/completions here. There are: .*POST /v1/ima"):
        server.client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "Hi"}])


def test_who_leaves_ends_the_drawing(server: Any, slow: list[str]) -> None:
    """Whole and streamed; the next one follows at once."""
    for stream in (False, True):
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
        body = {"prompt": "long", "steps": 900, "stream": stream, "partial_images": 3 if stream else None}
        connection.request("POST", "/v1/images/generations", json.dumps(body), {"Content-Type": "application/json"})
        until(lambda: server.studio.load == (0, 1))
        connection.sock.close()
        connection.close()
        until(lambda: server.studio.load == (0, 0))
    assert server.draw(prompt=PROMPT, **HOW).data[0].b64_json
    assert 'zoo_drawing_seconds_count{outcome="cancelled"} 2.0' in fetch(f"{server.url}/metrics")


def test_one_drawing_at_a_time_in_order(serve: Callable[..., Any], slow: list[str]) -> None:
    with serve() as server, ThreadPoolExecutor(3) as pool:
        drawn = []
        for number, prompt in enumerate(("one", "two", "three")):
            drawn.append(pool.submit(server.draw, prompt=prompt, **HOW))
            until(lambda number=number: server.studio.load == (number, 1))
        assert json.loads(fetch(f"{server.url}/ready")) == {"ready": True, "drawings_waiting": 2, "drawings_running": 1}
        assert "zoo_drawings_waiting 2.0" in fetch(f"{server.url}/metrics")
        assert all(future.result().data[0].b64_json for future in drawn) and slow == ["one", "two", "three"]
        until(lambda: "zoo_drawings_running 0.0" in fetch(f"{server.url}/metrics"))
        page = fetch(f"{server.url}/metrics")
    for line in (
        "zoo_drawings_waiting 0.0", "zoo_drawings_running 0.0", "zoo_drawn_images_total 3.0",
        "zoo_drawing_steps_total 9.0", 'zoo_drawing_seconds_count{outcome="done"} 3.0',
    ):  # fmt: skip
        assert line in page
    assert "zoo_requests_waiting" not in page, "nothing is said of what is not served"


def test_a_full_queue_a_late_drawing_and_the_end(serve: Callable[..., Any], slow: list[str]) -> None:
    with serve(max_waiting=1, seconds=1.5) as server, ThreadPoolExecutor(2) as pool:
        long = {"size": "96x64", "extra_body": {"steps": 900}}
        first = pool.submit(server.draw, prompt="late", **long)
        until(lambda: server.studio.load == (0, 1))
        second = pool.submit(server.draw, prompt="waits", **long)
        until(lambda: server.studio.load == (1, 1))
        with pytest.raises(openai.InternalServerError, match="1 drawings are waiting already") as full:
            server.draw(prompt=PROMPT, **HOW)
        assert full.value.status_code == 503 and full.value.response.headers["retry-after"]
        for future in (first, second):
            with pytest.raises(openai.InternalServerError, match=r"not finished within 1.5 s") as late:
                future.result()
            assert late.value.status_code == 504
        assert slow[0] == "late" and PROMPT not in slow, "what is refused is never begun"
        third = pool.submit(server.draw, prompt="ends", **long)
        until(lambda: slow[-1] == "ends" and server.studio.load == (0, 1))
        threading.Thread(target=server.studio.close).start()
        with pytest.raises(openai.InternalServerError, match="was shut down before the drawing was finished"):
            third.result()


def test_a_fault_of_the_model_is_no_fault_of_the_request(
    serve: Callable[..., Any], painter: Painter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents that are no numbers, and anything else; the next drawing is as ever."""
    with serve() as server:
        bias = painter.model.mixins["final_layer"].linear.bias
        kept = bias.clone()
        bias.fill_(torch.inf)
        try:
            for stream in (False, True):
                said = r"no numbers after step 1 of 3: .* in torch.float32"
                with pytest.raises(openai.InternalServerError, match=said) as nan:
                    server.draw(prompt=PROMPT, stream=stream, **HOW)
                assert "--" not in nan.value.message
        finally:
            bias.copy_(kept)
        with monkeypatch.context() as patched:
            patched.setattr(painter, "_read", lambda prompts: 1 / 0)
            with pytest.raises(openai.InternalServerError, match="ZeroDivisionError"):
                server.draw(prompt=PROMPT, **HOW)
        assert server.draw(prompt=PROMPT, **HOW).data[0].b64_json


def test_beside_a_model_that_talks(serve: Callable[..., Any], slow: list[str]) -> None:
    """An answer does not wait for a drawing; each model has its route."""
    with serve(load_pretrained("cogvlm-tiny", device="cpu")) as server, ThreadPoolExecutor(1) as pool:
        assert [model.id for model in server.client.models.list()] == ["cogvlm-tiny", NAME]
        drawing = pool.submit(server.draw, prompt=PROMPT, size="96x64", extra_body={"steps": 100})
        until(lambda: server.studio.load == (0, 1))
        question = asked("Describe this image.", data_url(EXAMPLE))
        answer = server.client.chat.completions.create(model="cogvlm-tiny", messages=question)
        assert answer.choices[0].message.content and not drawing.done()
        assert json.loads(fetch(f"{server.url}/ready"))["drawings_running"] == 1
        until(lambda: "zoo_requests_running 0.0" in fetch(f"{server.url}/metrics"))  # it is counted after its last word
        assert "zoo_drawings_running 1.0" in fetch(f"{server.url}/metrics")
        with pytest.raises(openai.NotFoundError, match=r"'painter' does not talk here. Talking: cogvlm-tiny"):
            server.client.chat.completions.create(model=NAME, messages=question)
        with pytest.raises(openai.NotFoundError, match=r"'cogvlm-tiny' does not draw here. Drawing: painter"):
            server.draw(model="cogvlm-tiny", prompt=PROMPT)
        threading.Thread(target=server.studio.close).start()
        with pytest.raises(openai.InternalServerError, match="was shut down"):
            drawing.result()


def test_a_painter_with_a_part_missing_serves_nobody(
    painter: Painter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAT_HOME", str(tmp_path))
    alone = load_pretrained(Path(__file__).parents[1] / "golden/cogview3-plus-mini/diffusers/transformer", device="cpu")
    with pytest.raises(ValueError, match="the text encoder is missing: fetch"):
        Studio(alone, names=[NAME])


def test_the_seed_is_drawn_once(painter: Painter) -> None:
    studio = Studio(painter, names=[NAME])
    drawing, chosen = studio.prepare(Drawing(PROMPT, {"steps": 1}))
    assert drawing.options["seed"] == chosen.seed and chosen.size == painter.config.usual_size
    studio.close()
