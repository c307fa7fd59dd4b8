"""What CogAgent says to do on a screen, as structured fields at every door; what other models say has none of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_vlm import scripted_vlm
from serving_http import asked, data_url
from speaking import session

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient

from sat_models import runtime
from sat_models.serving import cli
from sat_models.serving.api import create_app
from sat_models.serving.core import ServerCore
from sat_models.serving.dialogue import Dialogue
from sat_models.serving.metrics import Metrics
from sat_models.zoo.vlm import VLM

SAID = [
    "Plan: 1. Click the search bar.", " 2. Type it.\n\nNext Action: type 'a<b'\n\n",
    "Grounded Operation: [combobox] Search -> TYPE: a<b at the box [[100,200,300,400]]",
]  # fmt: skip
OPERATION = {
    "text": "[combobox] Search -> TYPE: a<b at the box [[100,200,300,400]]", "action": "TYPE", "value": "a<b",
    "element_type": "combobox", "element": "Search", "boxes": [[20.0, 20.0, 60.0, 40.0]], "point": [40.0, 30.0],
}  # fmt: skip
AGENT = {"plan": ["Click the search bar.", "Type it."], "next_action": "type 'a<b'", "operation": OPERATION}
"""Of a screenshot of 200 x 100 pixels."""
QUERY = 'What steps do I need to take to "search for a<b"?(with grounding)'


@pytest.fixture(scope="module")
def vlm() -> VLM:
    runtime.init_model_parallel(1)
    vlm = scripted_vlm("CogAgentModel")
    vlm.processor.tokenizer.script = SAID
    return vlm


@pytest.fixture
def core(vlm: VLM) -> Iterator[ServerCore]:
    core = ServerCore(vlm, vlm.engine(), names=["screen"])
    yield core
    core.scheduler.close()


def command_line(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *flags: object
) -> dict[str, Any]:
    monkeypatch.setattr("sat_models.zoo.load_pretrained", lambda *_, **__: vlm)
    assert cli.main(["--json", "--query", QUERY, *map(str, flags)]) == 0
    return json.loads(capfd.readouterr().out)


def test_in_python(vlm: VLM) -> None:
    found = vlm.read("".join(SAID), (200, 100))
    assert found.parts == {"agent": AGENT} and [list(box.pixels) for box in found.boxes] == OPERATION["boxes"]
    assert vlm.read("A cat.", (200, 100)).parts == {} == vlm.read("".join(SAID), None).parts
    (point,) = [vlm.read("Operation: tap [[500,500]]", (200, 100)).parts["agent"]["operation"]["point"]]
    assert point == [100.0, 50.0]


def test_on_the_command_line(
    vlm: VLM, image: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command_line(vlm, monkeypatch, capfd, "--image", image)["agent"] == AGENT
    assert "agent" not in command_line(vlm, monkeypatch, capfd), "there is no screen"


def test_another_family_has_no_such_field(
    image: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    other = scripted_vlm("CogVLMModel")
    other.processor.tokenizer.script = SAID
    said = command_line(other, monkeypatch, capfd, "--image", image)
    assert list(said) == ["text", "token_ids", "finish_reason", "boxes"] and said["boxes"] == OPERATION["boxes"]


def test_in_a_dialogue(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat, _ = session("".join(SAID).replace("[[100,200,300,400]]", ""), "A cat.", model_class="CogAgentModel")
    lines = iter([QUERY, "What is it?", "stop"])
    Dialogue(chat, image=str(image), read=lambda _: next(lines)).run()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("agent: ")]
    assert json.loads(line.removeprefix("agent: "))["next_action"] == AGENT["next_action"]


def test_through_the_api(core: ServerCore, image: Path) -> None:
    client = TestClient(create_app(core, Metrics()))
    body = {"model": "screen", "messages": asked(QUERY, data_url(image))}
    (choice,) = client.post("/v1/chat/completions", json=body).json()["choices"]
    assert choice["message"]["agent"] == AGENT
    lines = client.post("/v1/chat/completions", json=body | {"stream": True}).text.splitlines()
    deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in lines if line.startswith("data: {")]
    assert [delta["agent"] for delta in deltas if "agent" in delta] == [AGENT]
    (plain,) = client.post("/v1/chat/completions", json=body | {"messages": asked(QUERY)}).json()["choices"]
    assert "agent" not in plain["message"]


@pytest.mark.parametrize("language", ["english", "chinese"])
def test_on_the_page(core: ServerCore, image: Path, language: str) -> None:
    pytest.importorskip("gradio")
    from sat_models.serving.web import Page
    from sat_models.serving.web_texts import WORDS

    settings = {"version": "chat", "temperature": 0.0, "top_p": 1.0, "top_k": 0, "tokens": 64, "seed": None}

    async def turn() -> Any:
        asked_for = Page(core).ask(QUERY, str(image), [], (None, []), language=language, **settings)
        return [state async for state in asked_for][-1]

    table = asyncio.run(turn())[3]
    rows = dict(tuple(map(str.strip, line.strip("|").split("|"))) for line in table.split("\n\n")[1].splitlines())
    words = WORDS[language]
    assert rows[words["agent.plan"]] == "1. Click the search bar.<br>2. Type it."
    assert rows[words["agent.operation.value"]] == "a&lt;b" and rows[words["agent.operation.point"]] == "40, 30"
    named = {name for name in words if name.startswith("agent.")}
    assert {words[name] for name in named} <= rows.keys(), "every part has a word, and every word a part"
