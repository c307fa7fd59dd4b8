"""The command that makes films: its file, its line for programs, and what it refuses before it works."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sat_models.zoo
from sat_models.commands.film import main
from sat_models.errors import ZooError
from sat_models.processing.film import Film, read_film
from sat_models.sampling.film_options import FilmOptions, drawn_seed, given_frames
from sat_models.zoo.film_maker import FilmMaker, FilmState

ROOT = Path(__file__).resolve().parents[2]


class Plain(FilmMaker):
    """Makes plain frames, as many as asked for."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}

    def film_steps(self, prompt: str, **options: Any) -> Iterator[FilmState]:
        self.asked = {"prompt": prompt, **options}
        width, height = options.get("size", (32, 16))
        frames, fps = options.get("frames", 3), options.get("fps", 8)
        chosen = FilmOptions(
            frames=frames, fps=fps, size=(width, height), steps=2, guidance=options.get("guidance"),
            seed=drawn_seed(options.get("seed")), images=tuple(given_frames(options.get("image"))),
        )  # fmt: skip
        film = Film(np.full((frames, height, width, 3), 200, np.uint8), fps)
        return (FilmState(index, 2, chosen, lambda: film) for index in (1, 2))


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Plain:
    plain = Plain()
    monkeypatch.setattr(sat_models.zoo, "load_pretrained", lambda *_, **__: plain)
    return plain


def flags(*others: object) -> list[str]:
    return ["--from_pretrained", "x", "--prompt", "A red circle moves.", *map(str, others)]


def test_a_film_and_a_line_for_programs(maker: Plain, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "deep" / "x.mp4"
    given = ["--frames", 5, "--fps", 4, "--size", "48x32", "--seed", 3, "--guidance", 2, "--output", place, "--json"]
    assert main(flags(*given, "--image", "0=a.png", "4=b.png")) == 0
    assert json.loads(capsys.readouterr().out) == {
        "files": [str(place)], "prompt": "A red circle moves.", "size": [48, 32], "frames": 5, "fps": 4, "steps": 2,
        "guidance": 2, "seed": 3, "images": [0, 4],
    }  # fmt: skip
    assert maker.asked["image"] == {0: "a.png", 4: "b.png"}
    film = read_film(place)
    assert (len(film.frames), film.fps, film.size) == (5, 4, (48, 32))


def test_what_is_left_out_is_left_to_the_model(
    maker: Plain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags("--output", tmp_path / "x.gif", "--image", "a.png")) == 0
    assert maker.asked == {"prompt": "A red circle moves.", "image": "a.png"}
    assert "x.gif  (32x16, 3 frames, 8 a second, 2 steps, seed " in capsys.readouterr().out
    assert main(flags("--output", tmp_path / "frames")) == 0
    assert len(list((tmp_path / "frames").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--frames", "0"], "--frames is 0; it must be at least 1"),
        (["--fps", "0"], "fps is 0.0; it must be a number of frames a second above 0"),
        (["--fps", "nan"], "fps is nan"),
        (["--size", "100"], "--size is '100'; it must be WIDTHxHEIGHT"),
        (["--output", "x.avi"], r"a film ends in \.mp4 or \.gif"),
        (["--image", "a.png", "b.png"], "name one image, or FRAME=IMAGE for each of several"),
        (["--image", "1=a.png", "1=b.png"], "--image names a frame twice"),
    ],
)
def test_what_is_refused(
    maker: Plain, given: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZooError, match=message):
        main(flags(*given))
    assert not list(tmp_path.iterdir())


def test_the_script_says_an_error_in_one_line() -> None:
    wrong = [sys.executable, str(ROOT / "scripts" / "cli_demo_video.py"), *flags("--output", "x.avi")]
    done = subprocess.run(wrong, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: x.avi: a film ends in .mp4 or .gif")
