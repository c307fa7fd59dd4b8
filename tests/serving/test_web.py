"""The web page: its turns on the bundled model, and the whole of it in a headless Chromium."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops
from serving_http import EXAMPLE, ROOT

pytest.importorskip("gradio")

from sat_models.evaluation.metrics import iou
from sat_models.generation.session import BatchSession
from sat_models.processing.boxes import parse_boxes
from sat_models.serving.core import Limits, ServerCore
from sat_models.serving.web import Page, Site, launch, make_parser
from sat_models.serving.web_texts import LANGUAGES, TEMPLATES, WORDS
from sat_models.zoo import VLM, load_pretrained

WHERE = "Where is the red circle? answer in [[x0,y0,x1,y1]] format."
SETTINGS = {"language": "english", "version": "chat", "temperature": 0.0, "top_p": 0.4, "top_k": 0, "tokens": 64}


@pytest.fixture(scope="module")
def vlm() -> VLM:
    return load_pretrained("cogvlm-tiny", device="cpu")


@pytest.fixture
def core(vlm: VLM) -> Iterator[ServerCore]:
    core = ServerCore(vlm, vlm.engine(), names=["cogvlm-tiny"], limits=Limits(max_new_tokens=64, max_rows=2))
    yield core
    core.scheduler.close()


def turn(page: Page, question: str, path: str | None = None, talk: Any = (None, []), **how: Any) -> list[tuple]:
    """All that one turn shows."""

    async def run() -> list[tuple]:
        given = {**SETTINGS, "seed": None, **how}
        return [state async for state in page.ask(question, path, [], talk, **given)]

    return asyncio.run(run())


@pytest.mark.parametrize("question", ["a \ud83d b", "", "word " * 5000], ids=["half", "empty", "long"])
def test_a_question_that_cannot_be_asked_is_told_without_flags(core: ServerCore, question: str) -> None:
    """And whatever it holds, the page can be shown."""
    states = turn(Page(core), question, str(EXAMPLE))
    said = states[-1][0][-1]["content"]
    assert "Error" in said and "--" not in said and "max_length" not in said
    json.dumps([(state[0], state[-1]) for state in states], ensure_ascii=False).encode()


@pytest.mark.parametrize("path", ["http://127.0.0.1:1/x.png", "data:image/png;base64,eA==", " https://x.invalid/x.png"])
def test_a_path_is_never_fetched(core: ServerCore, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    assert "does not exist" in turn(Page(core), "Hi", path)[-1][0][-1]["content"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"talk": (str(EXAMPLE), [("a", None)])}, "Turn 1 of the history is"),
        ({"talk": (str(EXAMPLE), "ab")}, "Turn 1 of the history is"),
        ({"talk": (str(EXAMPLE), [("a", "b")] * 20_000)}, "The prompt takes more than"),
        ({"question": "x" * 20_000_000}, "The prompt takes more than"),
        ({"version": "nope"}, "Unknown prompt version 'nope'"),
        ({"tokens": -3}, "max_new_tokens is -3"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_tampered_turns_are_told_in_a_line(core: ServerCore, changed: dict[str, Any], said: str) -> None:
    asked = {"question": "Hi", "path": str(EXAMPLE), **changed}
    shown = turn(Page(core), **asked)[-1][0][-1]["content"]
    assert said in shown and len(shown) < 1000


def test_a_turn_streams_and_draws(core: ServerCore, vlm: VLM) -> None:
    states = turn(Page(core), WHERE, str(EXAMPLE))
    said = vlm.generate(str(EXAMPLE), WHERE, max_new_tokens=64).text
    assert len(states) > 4, "it comes in pieces"
    chat, talk, drawn, table, _ = states[-1]
    assert [message["role"] for message in chat] == ["user", "assistant"]
    assert chat[1]["content"] == said and talk == (str(EXAMPLE), [(WHERE, said)])
    (box,) = parse_boxes(said, *drawn.size)
    boxes, whole = table.split("\n\n")
    cells = [cell.strip() for cell in boxes.splitlines()[-1].strip("|").split("|")]
    assert cells[1:5] == [str(v) for v in box.rounded()]
    assert cells[5].endswith(" %") and whole.endswith(" %"), "the probabilities of the box and of the answer"
    assert states[1][0][1]["content"] in said


def test_the_history_goes_into_the_next_turn(core: ServerCore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    prepare = core.prepare
    monkeypatch.setattr(core, "prepare", lambda question: seen.append(question) or prepare(question))
    turn(Page(core), "And now?", talk=(None, [("Hi", "Hello")]), tokens=2)
    assert seen[0].history == [("Hi", "Hello")] and seen[0].images == []
    turn(Page(core), "And this?", str(EXAMPLE), talk=(None, [("Hi", "Hello")]), tokens=2)
    assert seen[1].history == [] and len(seen[1].images) == 1, "another picture is another conversation"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_real_error_is_shown(core: ServerCore, tmp_path: Path, language: str) -> None:
    broken = tmp_path / "x.png"
    broken.write_bytes(EXAMPLE.read_bytes()[:200])
    for question, path, message in (("", None, "The question is empty"), (WHERE, str(broken), "cut off")):
        chat, talk, _, _, box = turn(Page(core), question, path, language=language)[-1]
        assert chat[1]["content"].startswith(f"**{WORDS[language]['error']}:**") and message in chat[1]["content"]
        assert talk[1] == [] and box == question, "it can be mended and sent again"


def test_an_error_of_the_model_is_shown_by_type(core: ServerCore, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: BatchSession) -> dict[int, int]:
        self.close()
        raise RuntimeError("out of memory")

    monkeypatch.setattr(BatchSession, "step", fail)
    assert "RuntimeError: out of memory" in turn(Page(core), "Hi")[-1][0][1]["content"]


def test_closing_a_turn_frees_its_place(core: ServerCore, monkeypatch: pytest.MonkeyPatch) -> None:
    step = BatchSession.step
    monkeypatch.setattr(BatchSession, "step", lambda self: time.sleep(0.05) or step(self))

    async def run() -> None:
        asked = Page(core).ask("Describe this image.", str(EXAMPLE), [], (None, []), **SETTINGS, seed=None)
        for _ in range(3):
            await anext(asked)
        assert core.scheduler.load == (0, 1)
        await asked.aclose()
        deadline = time.monotonic() + 5
        while core.scheduler.load != (0, 0):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(run())


def test_both_languages_say_the_same_things() -> None:
    assert WORDS["english"].keys() == WORDS["chinese"].keys()
    assert all(text.strip() for words in WORDS.values() for text in words.values())
    assert {"caption", "vqa", "rec", "grounded", "reg", "agent"} == set(TEMPLATES)
    assert make_parser().parse_args(["--chinese", "--from-pretrained", "x"]).language == "chinese"


def chromium() -> str | None:
    """A browser of this machine, else what playwright has installed."""
    installed = (Path.home() / ".cache" / "ms-playwright").glob("chromium-*/chrome-linux*/chrome")
    own = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, (*own, *map(str, installed))), None)


@pytest.mark.slow
def test_in_a_browser(core: ServerCore, tmp_path: Path) -> None:
    """Upload, ask, see the answer and the box, read an error, switch the language.

    ZOO_SCREENSHOT names a file for the picture of the page that the documentation shows.
    """
    sync_api = pytest.importorskip("playwright.sync_api")
    if chromium() is None:
        pytest.skip("no Chromium here (playwright install chromium, or your system's package)")
    path = ROOT / "examples" / "2.png"  # an orange circle on white, nothing else
    with Image.open(path) as image:
        true = ImageChops.invert(image.convert("RGB")).getbbox()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    page = launch(Site(Page(core)), host="127.0.0.1", port=port)
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1280, "height": 960})
            tab.set_default_timeout(120_000)
            tab.goto(f"http://127.0.0.1:{port}")
            tab.locator("#picture input[type=file]").set_input_files(str(path))
            tab.locator("#picture img").wait_for()
            question = tab.locator("#question textarea")
            question.fill("Where is the orange circle? answer in [[x0,y0,x1,y1]] format.")
            tab.locator("#send").click()
            tab.locator("#drawn img").wait_for()
            tab.locator("#boxes td").nth(4).wait_for()
            if target := os.environ.get("ZOO_SCREENSHOT"):
                tab.wait_for_timeout(1000)
                tab.screenshot(path=target)
            answer = tab.locator("#chat").inner_text()
            assert re.search(r"\[\[\d{3},\d{3},\d{3},\d{3}\]\]", answer), answer
            said = [int(cell) for cell in tab.locator("#boxes td").all_inner_texts()[-5:-1]]
            assert iou(said, true) > 0.5, (said, true)
            question.fill("   ")
            question.press("Enter")
            tab.get_by_text("The question is empty").wait_for()
            tab.get_by_text("中文").click()
            tab.get_by_text("重新开始").wait_for()
            browser.close()
    finally:
        page.close(verbose=False)


@pytest.mark.slow
def test_two_processes_share_the_model(tmp_path: Path) -> None:
    """The page as a program under torchrun: an error, then an answer, then an end in order."""
    import gradio_client

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*launcher, str(ROOT / "scripts" / "web_demo.py"), "--port", "0", "--device", "cpu"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line.startswith("Serving cogvlm-tiny on http://127.0.0.1:"), line
        client = gradio_client.Client(line.split()[-1], verbose=False)
        settings = ("english", "chat", 0.0, 0.4, 0, 32, None)
        for question, path, said in (
            ("", None, "The question is empty"),
            (WHERE, gradio_client.handle_file(str(EXAMPLE)), "[["),
        ):
            chat, *_ = client.predict(question, path, [], *settings, api_name="/ask")
            assert said in str(chat[-1]["content"])
        process.terminate()
        process.wait(60)
    finally:
        process.kill()
