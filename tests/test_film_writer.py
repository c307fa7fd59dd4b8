"""CogVideo from a prompt to a film, with tiny random weights: the ladder of frames, guidance, what is refused."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from token_painters import CELLS, write_painters

from sat_models.errors import CheckpointError, ConfigError, InputError, UnknownArgumentError
from sat_models.zoo import FilmMaker, load_pretrained
from sat_models.zoo import film_writer as module
from sat_models.zoo import token_painter as module_of_models
from sat_models.zoo.film_writer import FilmWriter

PROMPT = "一个红色的圆"
SMALL, LARGE = (32, 32), (96, 96)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cogvideo")
    return write_painters(folder, "cogvideo-stage1", "cogvideo-stage2", "cogview2-dsr")


@pytest.fixture(scope="module")
def writer(home: Path) -> FilmWriter:
    return load_pretrained(home / "cogvideo-stage1", device="cpu", dtype="float32", keep="all", task="film")


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return first.tobytes() == second.tobytes()


def test_a_film_has_its_frames_and_its_seed(writer: FilmWriter) -> None:
    assert isinstance(writer, FilmMaker)
    film = writer.film(PROMPT, seed=2, frames=9)
    assert film.frames.shape == (9, 96, 96, 3) and film.fps == 2
    small = writer.film(PROMPT, seed=2, frames=5, size=SMALL, fps=4)
    assert small.frames.shape == (5, 32, 32, 3) and small.fps == 4
    assert same(writer.film(PROMPT, seed=2, frames=5, size=SMALL).frames, small.frames)
    for other in ({"seed": 3}, {"guidance": 1}, {"guidance": 4.0}):
        changed = writer.film(PROMPT, **{"seed": 2, "frames": 5, "size": SMALL, **other}).frames
        assert not same(changed, small.frames), other
        assert same(changed[0], small.frames[0]) == ("seed" not in other), "the first frame is not guided"


def test_step_by_step_up_the_ladder(writer: FilmWriter) -> None:
    states = list(writer.film_steps(PROMPT, seed=2, frames=17, size=SMALL))
    assert [(state.index, state.of) for state in states] == [(index, 9) for index in range(1, 10)]
    films = [state.film() for state in states]
    assert [len(film.frames) for film in films] == [1, 2, 3, 4, 5, 7, 9, 13, 17]
    for before, after in itertools.pairwise(films[4::2]):
        assert same(before.frames, after.frames[::2]), "what stage 2 was given stays where it was"
    assert states[0].options.to_dict() == {
        "size": [32, 32], "frames": 17, "fps": 4.0, "guidance": 3.0, "seed": 2,
    }  # fmt: skip
    large = list(writer.film_steps(PROMPT, seed=2, frames=5))
    assert len(large) == 10 and large[6].film().size == LARGE and large[4].film().size == SMALL


def test_the_loop_is_asked_as_the_released_demo_asks_it(writer: FilmWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    original = module.write_frames

    def write(model: Any, text: torch.Tensor, given: torch.Tensor, **how: Any) -> Any:
        choice = how["choice"]
        words = writer._others.words.get()
        calls.append(
            {
                "text": words.text(text.tolist()), "stage": model.config.cogvideo_stage,
                "given": tuple(given.shape[:2]),
                "order": tuple(how["order"]), "weight": how["text_weight"], "second": how.get("second", True),
                "guide": words.text(how["guide"].tolist()) if "guide" in how else None,
                "guidance": how.get("guidance"), "lines": text.tolist().count(words.new_line),
                "choice": (choice.temperature, choice.best, choice.cluster_temperature),
            }
        )  # fmt: skip
        return original(model, text, given, **how)

    monkeypatch.setattr(module, "write_frames", write)
    writer.film(PROMPT, seed=0, frames=17, size=SMALL)
    plain = {"lines": 1, "weight": 1.4, "second": True, "guide": None, "guidance": None, "choice": (1.05, 12, 0.89)}
    between = {**plain, "stage": 2, "order": (0, 2, 4, 1, 3)}
    assert calls == [
        {
            **plain, "text": f"{PROMPT} 高清摄影", "stage": 1, "given": (1, 0), "order": (0,), "second": False,
            "lines": 0, "choice": (1.0, 16, 0.89),
        },
        {
            **plain, "text": f"4.0秒 {PROMPT} 视频", "stage": 1, "given": (1, 1), "order": (0, 1, 2, 3, 4),
            "weight": 0.0, "guide": "4.0秒 视频", "guidance": 3.0,
        },
        {**between, "text": f"2.0秒 {PROMPT}", "given": (2, 3)},
        {**between, "text": f"1.0秒 {PROMPT}", "given": (4, 3)},
    ]  # fmt: skip
    calls.clear()
    writer.film(PROMPT, seed=0, frames=5, size=SMALL, guidance=1)
    assert calls[1]["text"] == f"4.0秒 {PROMPT}" and calls[1]["weight"] == 1.4 and calls[1]["guide"] is None


def test_a_film_goes_on_from_an_image(writer: FilmWriter) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    image = Image.fromarray(pixels)
    (first, *_) = states = list(writer.film_steps(PROMPT, seed=2, frames=5, size=SMALL, image=image))
    assert first.options.images == (0,) and len(states) == 5
    ice = writer._others.pixels.get()
    middle = torch.from_numpy(pixels[:, 8:40].copy()).permute(2, 0, 1)[None] / 255
    expected = ice.decode(ice.encode(middle))[0].permute(1, 2, 0).clamp(0, 1) * 255
    assert abs(first.film().frames[0] - expected.round().numpy()).max() <= 1
    assert same(states[-1].film().frames[0], first.film().frames[0])
    assert same(writer.film(PROMPT, seed=2, frames=5, size=SMALL, image={0: image}).frames, states[-1].film().frames)


def test_models_are_in_memory_when_they_are_needed(home: Path) -> None:
    for keep, left in (("none", [False] * 4), ("model", [True, False, False, False])):
        writer = load_pretrained(home / "cogvideo-stage1", device="cpu", dtype="float32", keep=keep)
        states = writer.film_steps(PROMPT, seed=0, frames=9)
        seen = []
        for state in states:
            others = [part.here for part in writer._others.models.values()]
            seen.append((state.index, writer._model.here, others))
        here = keep == "model"
        assert seen[4] == (5, True, []) and seen[6] == (7, here, [True]) and seen[-1] == (16, here, [False, True])
        parts = (writer._model, *writer._others.models.values(), writer._others.pixels)
        assert [part.here for part in parts] == left


def test_what_is_refused(writer: FilmWriter, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGB", (32, 32))
    for options, kind, said in (
        ({"frames": 10}, InputError, "frames is 10; this model makes 5, 9, 17, 33"),
        ({"size": (48, 32)}, InputError, "this model makes 96x96 or 32x32"),
        ({"steps": 5, "sampler": "sat"}, ConfigError, "steps and sampler: CogVideo writes a code at a time"),
        ({"image": {3: image}}, InputError, "frame 3; this model takes one for the first frame, 0"),
        ({"image": {-1: image}}, InputError, "frame -1; frames are whole numbers"),
        ({"image": tmp_path / "none.png"}, InputError, "none.png"), ({"fps": 0}, InputError, "fps is 0"),
        ({"guidance": -1}, InputError, "guidance is -1"), ({"style": "oil"}, UnknownArgumentError, "'style'"),
    ):  # fmt: skip
        with pytest.raises(kind, match=said):
            writer.film_steps(PROMPT, **options)
    for prompt, said in (("", "the prompt is"), ("圆" * 80, "tokens with the words around it; 64 at most")):
        with pytest.raises(InputError, match=said):
            writer.film_steps(prompt)
    assert (module.free_bytes(torch.device("cpu")) or 2**21) > 2**20
    monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    with pytest.raises(InputError, match=r"a film of 33 frames takes about .* GB are free: use fewer frames"):
        writer.film_steps(PROMPT)
    with pytest.raises(ConfigError, match="is stage 2, which goes on from stage 1"):
        load_pretrained(home / "cogvideo-stage2", device="cpu").film(PROMPT)
    monkeypatch.setenv("SAT_HOME", str(tmp_path / "home"))
    for name in ("cogvideo-stage1", "icetk"):
        shutil.copytree(home / name, tmp_path / name)
    with pytest.raises(CheckpointError, match="the model cogvideo-stage2 is missing"):
        load_pretrained(tmp_path / "cogvideo-stage1", device="cpu").film_steps(PROMPT)


def test_companions_in_archives_and_without_sizes_of_their_own(
    writer: FilmWriter, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 2 is stage 2 though its `model_config.json` does not say so; stage 1 has no windows, whatever it says."""
    for name in ("cogvideo-stage1", "icetk", "cogvideo-stage2"):
        shutil.copytree(home / name, tmp_path / "from" / name)
    file = tmp_path / "from" / "cogvideo-stage2" / "model_config.json"
    sizes = json.loads(file.read_text())
    file.write_text(json.dumps({key: sizes[key] for key in sizes if key not in ("cogvideo_stage", "window_size")}))
    file = tmp_path / "from" / "cogvideo-stage1" / "model_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "window_size": 2}))
    monkeypatch.setitem(module_of_models.TOLD, "cogvideo-stage2", {"cogvideo_stage": 2, "window_size": 2})
    place = tmp_path / "from" / "cogvideo-stage2"
    shutil.make_archive(str(place), "zip", place.parent, place.name)
    shutil.rmtree(place)
    other = load_pretrained(tmp_path / "from" / "cogvideo-stage1", device="cpu", dtype="float32")
    expected = writer.film(PROMPT, seed=2, frames=9, size=SMALL).frames
    assert same(other.film(PROMPT, seed=2, frames=9, size=SMALL).frames, expected)


def test_a_prompt_in_another_language_is_warned_of(writer: FilmWriter, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        next(writer.film_steps("a red circle", size=SMALL, frames=5, seed=0))
    assert "is in English, and these weights were trained on Chinese" in caplog.text
    assert writer.config.frame_size == CELLS
