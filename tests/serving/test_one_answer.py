"""One answer, whoever asks: text, number of tokens and reason are the same at every door, in every prompt style."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scripted_vlm import scripted_vlm
from serving_http import asked, data_url

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient

from sat_models import runtime
from sat_models.evaluation.runner import batched_answers
from sat_models.generation.sampling import SamplingOptions
from sat_models.models.families import prompt_styles
from sat_models.processing.processor import Processor
from sat_models.serving import bulk, cli
from sat_models.serving.api import create_app
from sat_models.serving.chat import ChatSession
from sat_models.serving.core import ServerCore
from sat_models.serving.metrics import Metrics
from sat_models.serving.web import Page
from sat_models.training.data import VLMDataset
from sat_models.training.evaluating import Evaluator
from sat_models.training.records import Record
from sat_models.zoo.vlm import VLM

QUERY, STOP, LIMIT = "What is it?", "###!", 8
SAID, MORE = ["It", " is", " a dog"], [" Human", ": and", " then", " so", " on"]
CASES = {
    "an end token": (SAID, "It is a dog", 3, "stop"),
    "a limit": ([*SAID, *MORE, "x"], "It is a dog Human: and then so on", 8, "length"),
    "a stop of one token": ([*SAID, "###!", *MORE], "It is a dog", 3, "stop"),
    "a stop of two tokens": ([*SAID, "##", "#!", *MORE], "It is a dog", 3, "stop"),
    "a stop of three tokens": ([*SAID, "#", "##", "!", *MORE], "It is a dog", 3, "stop"),
    "a stop of four tokens": ([*SAID, "#", "#", "#", "!", *MORE], "It is a dog", 3, "stop"),
    "a stop behind a space": ([*SAID, " #", "##!", *MORE], "It is a dog ", 3, "stop"),
    "a stop inside a token": (["It", " is", " a dog.##", "#!\n", *MORE], "It is a dog.", 3, "stop"),
    "a stop at the limit": ([*SAID, "x", "y", "z", "##", "#!", *MORE], "It is a dogxyz", 6, "stop"),
    "a beginning of a stop at the limit": ([*SAID, "1", "2", "3", "4", "##", "#!"], "It is a dog1234##", 8, "length"),
    "a beginning of a stop": ([*SAID, "##", " ok"], "It is a dog## ok", 5, "stop"),
}
Found = tuple[str, int | None, str | None]
"""Text, number of tokens, reason; None where the door does not show it."""


@pytest.fixture(scope="module")
def vlm() -> VLM:
    runtime.init_model_parallel(1)
    return scripted_vlm()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "dog.png"
    Image.new("RGB", (20, 10), "brown").save(path)
    return path


@pytest.fixture(scope="module")
def core(vlm: VLM) -> Iterator[ServerCore]:
    core = ServerCore(vlm, vlm.engine(keep_prefixes=4), names=["scripted"])
    yield core
    core.scheduler.close()


@pytest.fixture(scope="module")
def client(core: ServerCore) -> Iterator[TestClient]:
    yield TestClient(create_app(core, Metrics()))


def front_doors(vlm: VLM, image: Path, version: str) -> Iterator[tuple[str, Found]]:
    how: dict[str, Any] = {"version": version, "max_new_tokens": LIMIT}
    result = vlm.generate(image, QUERY, **how)
    assert result.logprobs is not None and len(result.logprobs) == len(result.token_ids)
    yield "generate", (result.text, len(result.token_ids), result.finish_reason)
    for row in vlm.generate_batch([image, None, image], [QUERY, "Who?", "Where?"], **how):
        yield "generate_batch", (row.text, len(row.token_ids), row.finish_reason)
    yield "stream", ("".join(vlm.stream(image, QUERY, **how)), None, None)
    chat, pieces = ChatSession(vlm, options=SamplingOptions(max_new_tokens=LIMIT), version=version), []
    chat.set_image(image)
    for turn in ("chat", "second turn of a chat"):
        answer = chat.ask(QUERY, stream=pieces.append)
        yield turn, (answer.text, len(answer.token_ids), answer.finish_reason)
        assert "".join(pieces) == answer.text
        pieces.clear()


def command_line(
    vlm: VLM, image: Path, version: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[tuple[str, Found]]:
    monkeypatch.setattr("sat_models.zoo.load_pretrained", lambda *_, **__: vlm)
    flags = ["--image", str(image), "--query", QUERY, "--version", version, "--max_new_tokens", str(LIMIT)]
    monkeypatch.setattr(vlm.processor, "version", version)
    assert cli.main([*flags, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    yield "command line", (said["text"], len(said["token_ids"]), said["finish_reason"])
    assert cli.main([*flags, "--stream_chat"]) == 0
    yield "command line, streamed", (capfd.readouterr().out.removesuffix("\n"), None, None)


def servers(core: ServerCore, client: TestClient, image: Path, version: str) -> Iterator[tuple[str, Found]]:
    body = {"model": "scripted", "messages": asked(QUERY, data_url(image)), "max_tokens": LIMIT, "version": version}
    reply = client.post("/v1/chat/completions", json=body).json()
    (choice,) = reply["choices"]
    yield "API", (choice["message"]["content"], reply["usage"]["completion_tokens"], choice["finish_reason"])
    more = {"stream": True, "stream_options": {"include_usage": True}}
    lines = client.post("/v1/chat/completions", json=body | more).text.splitlines()
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    yield "API, streamed", (text, chunks[-1]["usage"]["completion_tokens"], choices[-1]["finish_reason"])
    settings = {"language": "english", "version": version, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "seed": None}

    async def turn() -> Any:
        asked_for = Page(core).ask(QUERY, str(image), [], (None, []), tokens=LIMIT, **settings)
        return [state async for state in asked_for][-1]

    shown, talk, *_ = asyncio.run(turn())
    said = talk[1][-1][1]
    cut = shown[-1]["content"].removeprefix(said)
    yield "page", (said, None, "length" if cut else "stop")


def offline(vlm: VLM, image: Path, version: str, folder: Path) -> Iterator[tuple[str, Found]]:
    options = SamplingOptions(max_new_tokens=LIMIT)
    output = folder / "captions.jsonl"
    bulk.caption(vlm, image.parent, output, query=QUERY, options=options, version=version, progress=False, made_by={})
    line = json.loads(output.read_text())
    yield "caption", (line["text"], None, line["finish_reason"])
    (said,) = batched_answers(vlm, options=options, version=version)([(Image.open(image), QUERY)])
    yield "evaluate", (said["text"], said["tokens"], said["finish_reason"])
    records = [Record("1", (str(image),), ((QUERY, "dog"),), "x:1")]
    evaluator = Evaluator(VLMDataset(records, vlm.processor, version=version), 1, 1, LIMIT)
    (made,) = evaluator._answers(vlm.model, torch.device("cpu"), False)
    yield "evaluation while training", (made["answer"], None, made["finish_reason"])


@pytest.mark.parametrize("version", prompt_styles())
@pytest.mark.parametrize("case", CASES)
def test_all_doors_give_the_same_answer(
    vlm: VLM, core: ServerCore, client: TestClient, image: Path, version: str, case: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    script, text, count, reason = CASES[case]
    vlm.processor.tokenizer.script = script
    own = Processor.stops
    monkeypatch.setattr(Processor, "stops", lambda self, version=None: (STOP, *own(self, version)))
    found = [*front_doors(vlm, image, version), *command_line(vlm, image, version, monkeypatch, capfd)]
    found += servers(core, client, image, version)
    deadline = time.monotonic() + 10
    while vlm.model.mixins:  # the scheduler gives the model back a moment after its last answer
        assert time.monotonic() < deadline
        time.sleep(0.001)
    found += offline(vlm, image, version, tmp_path)
    assert len(found) == 15
    for door, (said, tokens, ended) in found:
        assert said == text, door
        assert tokens in (count, None), door
        assert ended in (reason, None), door
