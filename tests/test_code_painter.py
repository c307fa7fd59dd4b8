"""CogView2 from a prompt to an image, with tiny random weights: steps, styles, residency, and what is refused."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from token_painters import CELLS, CODES, write_painters

from sat_models.errors import CheckpointError, ConfigError, InputError, UnknownArgumentError, UnknownNameError
from sat_models.sampling.codes import CodeChoice
from sat_models.sampling.writing_options import STYLES
from sat_models.zoo import load_pretrained
from sat_models.zoo.code_painter import CodePainter

PROMPT = "一个红色的圆"
SMALL, LARGE = (32, 32), (96, 96)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_painters(tmp_path_factory.mktemp("cogview2"), "coglm", "cogview2-dsr", "cogview2-itersr")


@pytest.fixture(scope="module")
def painter(home: Path) -> CodePainter:
    return load_pretrained(home / "coglm", device="cpu", dtype="float32", keep="all", task="drawing")


def test_an_image_is_its_prompt_its_style_and_its_seed(painter: CodePainter) -> None:
    first = painter.draw(PROMPT, seed=3)
    assert first.size == LARGE and first.mode == "RGB" and np.asarray(first).std() > 0
    assert painter.draw(PROMPT, seed=3).tobytes() == first.tobytes()
    for other in ({"seed": 4}, {"style": "oil"}):
        assert painter.draw(PROMPT, **{"seed": 3, **other}).tobytes() != first.tobytes(), other
    small = painter.draw([PROMPT, "视频"], seed=3, size=SMALL)
    assert [image.size for image in small] == [SMALL, SMALL]
    assert small[1].tobytes() == painter.draw("视频", seed=4, size=SMALL).tobytes()


def test_step_by_step(painter: CodePainter) -> None:
    states = list(painter.steps([PROMPT, PROMPT], seed=3))
    assert [state.index for state in states] == list(range(1, 2 * (CELLS + 7) + 1))
    assert {state.of for state in states} == {2 * (CELLS + 7)} and states[0].seeds == (3, 4)
    assert states[0].preview() == [], "no whole row is there"
    assert [image.size for image in states[5].preview()] == [(32, 8)]
    assert [image.size for image in states[CELLS + 8].preview()] == [SMALL, (32, 16)]
    assert [image.size for image in states[2 * CELLS].preview()] == [LARGE, SMALL]
    assert states[-1].images()[0].tobytes() == painter.draw(PROMPT, seed=3).tobytes()
    check = painter.check(PROMPT, seed=3)
    assert (check.size, check.style, check.seed, check.steps) == (LARGE, "mainbody", 3, None)


def test_each_model_is_asked_as_the_original_asks_it(painter: CodePainter, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float, int, float]] = []
    original = CodeChoice.draw

    def draw(self: CodeChoice, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        kind = {1: "small", 9 * CELLS: "large"}.get(len(logits), "again")
        seen.append((kind, self.temperature, self.best, self.cluster_temperature, self.clusters is not None))
        return original(self, logits, generator)

    monkeypatch.setattr(CodeChoice, "draw", draw)
    painter.draw(PROMPT, seed=1, style="comics")
    passes = [("again", 1.0, best, 1.0, False) for best in (40, 40, 40, 20, 20, 10)]
    assert seen == [*[("small", 1.1, 16, 1.0, True)] * CELLS, ("large", 1.0, 5, 0.4, True), *passes]


def test_texts_end_in_the_words_of_a_style(painter: CodePainter, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(
        "sat_models.zoo.code_painter.write_codes", lambda model, text, **_: asked.append(text) or iter([])
    )
    words = painter._others.words.get()
    list(painter.steps(PROMPT, style="photo", size=SMALL, seed=0))
    (ids,) = asked[0].tolist()
    assert words.text(ids[:-1]) == f"{PROMPT} 高清摄影" and ids[-1] == words.start_of_image
    assert len(STYLES) == 10


def test_models_are_in_memory_when_they_are_needed(home: Path) -> None:
    for keep, left in (("none", [False] * 4), ("model", [True, False, False, False]), ("all", [True] * 4)):
        painter = load_pretrained(home / "coglm", device="cpu", dtype="float32", keep=keep)
        painter.draw(PROMPT, seed=0)
        others = painter._others
        parts = (painter._model, *others.models.values(), others.pixels)
        assert [part.here for part in parts] == left, keep
    states = painter.steps(PROMPT, seed=0)
    next(states)
    states.close()


def test_a_prompt_in_another_language_is_warned_of(painter: CodePainter, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        painter.check("a red circle")
        assert not caplog.text
        painter.draw("a red circle", size=SMALL, seed=0)
        assert "'a red circle' is in English, and these weights were trained on Chinese: translate it" in caplog.text
        caplog.clear()
        painter.draw(PROMPT, size=SMALL, seed=0)
        assert not caplog.text


def test_what_is_refused(painter: CodePainter, home: Path) -> None:
    for options, kind, said in (
        ({"size": (64, 64)}, InputError, r"\(64, 64\); this model makes 96x96 or 32x32"),
        ({"size": 32}, InputError, "this model makes"), ({"seed": -1}, InputError, "seed is -1"),
        ({"style": "phot"}, UnknownNameError, "Did you mean photo"),
        ({"steps": 5}, UnknownArgumentError, r"'steps', which it does not take\. Did you mean style\?"),
    ):  # fmt: skip
        for call in (painter.draw, painter.check):
            with pytest.raises(kind, match=said):
                call(PROMPT, **options)
    with pytest.raises(InputError, match="the prompt is ' '"):
        painter.steps(" ")
    with pytest.raises(InputError, match="96 at most"):
        painter.steps("圆" * 120)
    with pytest.raises(ConfigError, match="quant_text is 8, but a CogLMModel has no text encoder"):
        load_pretrained(home / "coglm", device="cpu", quant_text=8)


def test_what_is_missing_is_named_before_any_work(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(home / "coglm", tmp_path / "coglm")
    painter = load_pretrained(tmp_path / "coglm", device="cpu")
    with pytest.raises(CheckpointError, match=r"ice_text\.model is missing.*cloud\.tsinghua"):
        painter.steps(PROMPT)
    shutil.copytree(home / "icetk", tmp_path / "home" / "icetk")
    with pytest.raises(CheckpointError, match=r"cogview2-dsr is missing.*cogview2-dsr\.zip.*home/cogview2-dsr"):
        painter.steps(PROMPT)
    assert painter.draw(PROMPT, size=SMALL, seed=0).size == SMALL
    assert painter.config.image_codes == CODES
