"""Images of an API request stand where they were sent, for models that were trained with images in any place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving_http import data_url

from sat_models.errors import InputError
from sat_models.models.families import prompt_style
from sat_models.serving.images import ImagePolicy
from sat_models.serving.messages import conversation
from sat_models.serving.schema import ChatRequest
from sat_models.zoo import load_pretrained

testclient = pytest.importorskip("fastapi.testclient")

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGE = {"type": "image_url", "image_url": {"url": data_url()}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def read(version: str, *contents: Any) -> tuple[str, list[Any]]:
    """Of user and assistant in turn."""
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return conversation(
        ChatRequest.model_validate({"model": "x", "messages": messages}).messages, prompt_style(version)
    )


def test_marks_say_where_images_were_sent() -> None:
    assert read("glm4v", "Hello.", "Hi.", [IMAGE, text("What is it?")]) == ("<image>What is it?", [("Hello.", "Hi.")])
    assert read("internvl2_5", [IMAGE, IMAGE, text("Compare.")], "Alike.", [text("And"), IMAGE, text("?")]) == (
        "And\n<image>\n?",
        [("<image>\n<image>\nCompare.", "Alike.")],
    )


def test_marks_of_the_user_and_models_of_one_place_are_left_alone() -> None:
    assert read("glm4v", [IMAGE, text("Look: <image> What?")]) == ("Look: <image> What?", [])
    assert read("chat", "Hello.", "Hi.", [IMAGE, text("What is it?")]) == ("What is it?", [("Hello.", "Hi.")])


@pytest.mark.parametrize("version", ["glm4v", "internvl2_5", "xcomposer2", "chat"])
def test_an_image_alone_asks_nothing(version: str) -> None:
    with pytest.raises(InputError, match="The question is empty"):
        read(version, [IMAGE])


@pytest.mark.parametrize("name", ["glm4v-mini", "internvl2-mini"])
def test_the_answer_is_that_of_an_image_in_its_turn(name: str) -> None:
    from sat_models.serving.api import create_app
    from sat_models.serving.core import Limits, ServerCore
    from sat_models.serving.metrics import Metrics

    vlm = load_pretrained(GOLDEN / name, device="cpu", dtype="float32")
    mark, gap = (getattr(vlm.processor.style(), part) for part in ("mark", "gap"))
    history = [("Hello.", "Hi.")]
    image = ImagePolicy().open(data_url())
    wanted = vlm.generate(image, f"{mark}{gap}What is it?", history=history, max_new_tokens=12)
    elsewhere = vlm.generate(image, "What is it?", history=history, max_new_tokens=12)
    assert wanted.prompt_tokens == elsewhere.prompt_tokens
    core = ServerCore(vlm, vlm.engine(), names=["m"], limits=Limits(max_rows=2))
    client = testclient.TestClient(create_app(core, Metrics(), on_shutdown=core.scheduler.close))
    messages = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": [IMAGE, text("What is it?")]},
    ]
    with client:
        body = {"model": "m", "messages": messages, "max_tokens": 12, "temperature": 0}
        reply = client.post("/v1/chat/completions", json=body).json()
    assert reply["choices"][0]["message"]["content"] == wanted.text
    assert wanted.token_ids != elsewhere.token_ids, "the place says nothing, so this test could not fail"


def test_tiles_are_chosen_on_the_command_line_and_through_the_api(capfd: pytest.CaptureFixture[str]) -> None:
    from sat_models.serving import cli
    from sat_models.serving.api import create_app
    from sat_models.serving.core import Limits, ServerCore
    from sat_models.serving.metrics import Metrics

    folder = GOLDEN / "internvl2-mini"
    vlm = load_pretrained(folder, device="cpu", dtype="float32")
    asked = {most: vlm.generate(folder / "image.png", "What?", max_tiles=most, max_new_tokens=4) for most in (1, 4)}
    assert asked[1].prompt_tokens < asked[4].prompt_tokens
    core = ServerCore(vlm, vlm.engine(), names=["m"], limits=Limits(max_rows=2))
    client = testclient.TestClient(create_app(core, Metrics(), on_shutdown=core.scheduler.close))
    image = {"type": "image_url", "image_url": {"url": data_url(folder / "image.png")}}
    with client:
        body = {"model": "m", "messages": [{"role": "user", "content": [image, text("What?")]}], "max_tokens": 4}
        for most, wanted in asked.items():
            reply = client.post("/v1/chat/completions", json={**body, "temperature": 0, "max_tiles": most}).json()
            assert reply["usage"]["prompt_tokens"] == wanted.prompt_tokens
        for most in (0, 10**9, True):
            assert client.post("/v1/chat/completions", json={**body, "max_tiles": most}).status_code == 400
    common = ["--from_pretrained", str(folder), "--image", str(folder / "image.png"), "--query", "What?", "--json"]
    assert cli.main([*common, "--max_new_tokens", "4", "--max_tiles", "1", "--top_k", "1", "--fp32"]) == 0
    assert f'"token_ids": {asked[1].token_ids}' in capfd.readouterr().out
    assert cli.main(["--image", str(folder / "image.png"), "--query", "What?", "--max_tiles", "3"]) == 2
    assert "does not cut images into tiles" in capfd.readouterr().err
