"""The part of the page that draws, on a golden painter, and the whole page in a headless Chromium."""

from __future__ import annotations

import asyncio
import io
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image
from test_web import chromium

pytest.importorskip("gradio")

from drawing_place import LONG, golden_painter

from sat_models.serving.core import Limits, ServerCore
from sat_models.serving.drawings import DrawingLimits
from sat_models.serving.studio import Studio
from sat_models.serving.web import Site, launch
from sat_models.serving.web_chat import Page
from sat_models.serving.web_drawing import MOST_SHOWN, Easel, newest_or_chosen
from sat_models.serving.web_texts import LANGUAGES, WORDS
from sat_models.zoo import Painter, load_pretrained

PROMPT = "A red circle"
SETTINGS = {"width": 96, "height": 64, "steps": 4, "guidance": 5.0, "count": 1, "seed": 7, "gallery": None}


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Painter:
    return golden_painter(tmp_path_factory.mktemp("painter"))


@pytest.fixture
def studio(painter: Painter) -> Iterator[Studio]:
    studio = Studio(painter, names=["painter"], limits=DrawingLimits(most=3))
    yield studio
    studio.close()


def drawn(studio: Studio, prompt: str = PROMPT, *, language: str = "english", **how: Any) -> list[tuple[str, Any, Any]]:
    """All that one drawing shows."""

    async def run() -> list[tuple[str, Any, Any]]:
        given = {**SETTINGS, **how}
        return [state async for state in Easel(studio).draw(prompt, **given, language=language)]

    return asyncio.run(run())


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_drawing_shows_its_steps_and_goes_into_the_gallery(studio: Studio, painter: Painter, language: str) -> None:
    words = WORDS[language]
    states = drawn(studio, gallery=[("old.png", "before")], language=language)
    lines = [line.split(" · ")[0] for line, _, _ in states]
    assert lines == [
        words["begins"],
        *(words["step"].format(step=n, of=4) for n in (1, 2, 3, 4)),
        words["done"].format(seed=7),
    ]
    previews = [image for _, image, _ in states[1:-1] if isinstance(image, Image.Image)]
    assert previews and previews[0].size == (96, 64), "the first step shows what it may become"
    wanted = painter.draw(PROMPT, size=(96, 64), steps=4, guidance=5.0, seed=7)
    _, image, gallery = states[-1]
    assert image.tobytes() == wanted.tobytes()
    assert [text for _, text in gallery] == [f"{PROMPT} · 7", "before"] and gallery[0][0] is image


def test_several_images_a_cut_prompt_and_a_full_gallery(studio: Studio) -> None:
    full = [("old.png", str(number)) for number in range(MOST_SHOWN)]
    states = drawn(studio, LONG, count=2, gallery=full, steps=1)
    assert WORDS["english"]["image_of"].format(number=2, count=2) in states[-2][0]
    assert "left out: '" in states[-1][0] and "triangle" in states[-1][0]
    gallery = states[-1][2]
    assert len(gallery) == MOST_SHOWN and [text.rpartition(" · ")[2] for _, text in gallery[:3]] == ["8", "7", "0"]


def test_what_is_left_open_is_as_usual(studio: Studio, painter: Painter) -> None:
    image = drawn(studio, width=None, height=None, guidance=None, steps=2)[-1][1]
    assert image.tobytes() == painter.draw(PROMPT, steps=2, seed=7).tobytes()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": " "}, "say what is to be seen"),
        ({"width": 100}, "100x64 cannot be drawn"),
        ({"steps": 0}, "steps is 0"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"count": 4}, "4 images were asked for; this server draws 1 to 3"),
        ({"seed": -1}, "seed is -1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_is_refused_is_said(studio: Studio, given: dict[str, Any], message: str) -> None:
    line, *_ = drawn(studio, **given)[-1]
    assert line.startswith("**Error:**") and message in line and "--" not in line


def test_closing_ends_the_drawing(studio: Studio, painter: Painter) -> None:
    async def run() -> None:
        drawing = Easel(studio).draw(PROMPT, **{**SETTINGS, "steps": 1000}, language="english")
        for _ in range(3):
            await anext(drawing)
        assert studio.load == (0, 1)
        await drawing.aclose()
        deadline = time.monotonic() + 10
        while studio.load != (0, 0):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(run())


def test_which_image_is_asked_about() -> None:
    shown = [("new.png", "a"), ("old.png", "b")]
    assert newest_or_chosen(shown, None) == "new.png" and newest_or_chosen(shown, 1) == "old.png"
    assert newest_or_chosen(shown, 7) == "new.png", "the gallery has become shorter"
    assert newest_or_chosen([], 0) is None and newest_or_chosen(None, None) is None


@pytest.mark.parametrize("parts", ["draw", "both"])
def test_the_page_is_built_of_what_is_there(studio: Studio, parts: str) -> None:
    core = None
    if parts == "both":
        vlm = load_pretrained("cogvlm-tiny", device="cpu")
        core = ServerCore(vlm, vlm.engine(), names=["cogvlm-tiny"])
    site = Site(core and Page(core), Easel(studio, asks=core is not None))
    ids = {block.elem_id for block in site.build().blocks.values() if getattr(block, "elem_id", None)}
    assert {"wish", "draw", "easel", "gallery"} <= ids and ("question" in ids) == (parts == "both")
    assert site.title == ("cogvlm-tiny · painter" if core else "painter")
    if core:
        core.scheduler.close()


@pytest.mark.slow
def test_in_a_browser(painter: Painter) -> None:
    """Draw, see the image and the gallery, stop another one, read an error, ask about the image, switch the language.

    ZOO_SCREENSHOT_DRAWING names a file for the picture of the page that the documentation shows.
    """
    sync_api = pytest.importorskip("playwright.sync_api")
    if chromium() is None:
        pytest.skip("no Chromium here (playwright install chromium, or your system's package)")
    vlm = load_pretrained("cogvlm-tiny", device="cpu")
    core = ServerCore(vlm, vlm.engine(), names=["cogvlm-tiny"], limits=Limits(max_new_tokens=64))
    studio = Studio(painter, names=["painter"])
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    page = launch(Site(Page(core), Easel(studio, asks=True)), host="127.0.0.1", port=port)
    try:
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1280, "height": 1000})
            tab.set_default_timeout(120_000)
            tab.goto(f"http://127.0.0.1:{port}")
            tab.get_by_role("tab", name="Draw").click()
            _draw_in(tab, painter, studio)
            tab.locator("#ask_about").click()
            tab.locator("#picture img").wait_for()
            tab.locator("#question textarea").fill("Describe this image.")
            tab.locator("#send").click()
            tab.wait_for_function("document.querySelector('#chat').innerText.length > 40")
            tab.get_by_text("中文").click()
            tab.get_by_role("tab", name="绘画").click()
            tab.get_by_text("画面内容").first.wait_for()
            browser.close()
    finally:
        page.close(verbose=False)
        studio.close()
        core.scheduler.close()


def _draw_in(tab: Any, painter: Painter, studio: Studio) -> None:
    for name, value in (("width", 96), ("height", 64), ("steps", 30)):
        box = tab.locator(f"#{name} input[type=number]")
        box.fill(str(value))
        box.blur()
    tab.locator("#draw_seed input").fill("7")
    tab.locator("#wish textarea").fill(PROMPT)
    tab.locator("#draw").click()
    tab.locator("#progress").get_by_text("of 30").wait_for()
    tab.locator("#progress").get_by_text("Done, with seed 7").wait_for()
    tab.locator("#gallery img").first.wait_for()
    place = tab.locator("#easel img").get_attribute("src")
    image = Image.open(io.BytesIO(tab.request.get(place).body())).convert("RGB")
    assert image.tobytes() == painter.draw(PROMPT, size=(96, 64), steps=30, seed=7).tobytes()
    if target := os.environ.get("ZOO_SCREENSHOT_DRAWING"):
        tab.wait_for_timeout(1000)
        tab.screenshot(path=target)
    tab.locator("#steps input[type=number]").fill("100")
    tab.locator("#steps input[type=number]").blur()
    tab.locator("#draw").click()
    tab.locator("#progress").get_by_text("of 100").wait_for()
    tab.locator("#draw_stop").click()
    deadline = time.monotonic() + 30
    while studio.load != (0, 0):
        assert time.monotonic() < deadline
        tab.wait_for_timeout(50)
    assert tab.locator("#gallery img").count() == 1, "what was stopped is not there"
    tab.locator("#wish textarea").fill(" ")
    tab.locator("#draw").click()
    tab.locator("#progress").get_by_text("say what is to be seen").wait_for()
