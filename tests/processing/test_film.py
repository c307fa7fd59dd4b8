"""Films as files: what is written is what is read again, or what was asked for is refused before any work."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sat_models.errors import ConfigError, InputError, MissingPackageError
from sat_models.processing.film import Film, film_place, read_film


def film(frames: int = 5, height: int = 48, width: int = 64, fps: float = 8) -> Film:
    """A red film over a blue ground, each frame a little lighter; all colours plain, so that codecs keep them."""
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    pixels[:, : height // 2] = (220, 30, 40)
    pixels[:, height // 2 :] = (20, 60, 200)
    pixels[..., 1] += (10 * np.arange(frames, dtype=np.uint8))[:, None, None]
    return Film(pixels, fps)


def levels(first: np.ndarray, second: np.ndarray) -> int:
    """The largest difference, away from the border of the two colours."""
    apart = abs(first.astype(int) - second.astype(int))
    rows = np.r_[0:20, 28 : min(first.shape[1], second.shape[1])]
    return int(apart[:, rows].max())


@pytest.mark.parametrize("fps", [8, 23.976, 0.5])
def test_an_mp4_has_the_frames_their_colours_and_their_times(tmp_path: Path, fps: float) -> None:
    import av

    place = film(fps=fps).save(tmp_path / "deep" / "x.mp4")
    again = read_film(place)
    assert again.frames.shape == (5, 48, 64, 3) and again.fps == pytest.approx(fps, rel=1e-4)
    assert levels(again.frames, film().frames) <= 4
    with av.open(str(place)) as file:
        context = file.streams.video[0].codec_context
        assert context.name == "h264" and context.pix_fmt == "yuv420p", "what browsers show"
        assert context.colorspace == context.color_primaries == 1
        assert float(file.duration / av.time_base) == pytest.approx(5 / fps, rel=0.01)
    assert [path.name for path in place.parent.iterdir()] == ["x.mp4"]


def test_odd_sides_of_an_mp4_become_even(tmp_path: Path) -> None:
    odd = film(height=47, width=63)
    again = read_film(odd.save(tmp_path / "x.mp4"))
    assert again.size == (64, 48)
    assert levels(again.frames[:, :47, :63], odd.frames) <= 4


@pytest.mark.parametrize(("fps", "times"), [(8, [120, 130, 130, 120, 120]), (16, [60, 60, 70, 60, 60])])
def test_a_gif_has_the_frames_and_ends_when_the_film_does(tmp_path: Path, fps: float, times: list[int]) -> None:
    place, found = film(fps=fps).save(tmp_path / "x.gif"), []
    with Image.open(place) as image:
        for number in range(image.n_frames):
            image.seek(number)
            found.append(image.info["duration"])
            assert levels(np.asarray(image.convert("RGB"))[None], film().frames[[number]]) <= 2
        assert image.info["loop"] == 0
    assert found == times


def test_a_folder_has_the_frames_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    place = film(fps=12.5).save(tmp_path / "frames")
    assert sorted(path.name for path in place.iterdir()) == [*(f"000{n}.png" for n in range(1, 6)), "film.json"]
    assert json.loads((place / "film.json").read_text()) == {"frames": 5, "fps": 12.5}
    again = read_film(place)
    assert again.fps == 12.5 and np.array_equal(again.frames, film().frames)
    assert Film.of_images(again.images(), 12.5).frames.tobytes() == film().frames.tobytes()


def test_places_are_seen_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "x.mp4").mkdir()
    for place, said in (
        ("x.avi", r"a film ends in \.mp4 or \.gif, or is a folder"), ("full", "is a folder already"),
        ("x.mp4", "is a folder already"), ("file", "is a file already"), ("file/x.gif", "file is a file"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            film_place(tmp_path / place)
    monkeypatch.setitem(sys.modules, "av", None)
    film_place(tmp_path / "x.gif")
    with pytest.raises(MissingPackageError, match=r"cogvlm-sat-zoo\[film\]"):
        film_place(tmp_path / "y.mp4")


def test_what_is_no_film(tmp_path: Path) -> None:
    good = film().frames
    for frames, said in (
        (good.astype(float), r"float64 \[5, 48, 64, 3\]"), (good[0], r"uint8 \[48, 64, 3\]"), (None, "NoneType"),
        (good[..., :2], "must be 3, for RGB"), (good[:0], r"uint8 \[0, 48"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            Film(frames, 8)
    for fps in (0, -1, float("nan"), 1000, True, "8"):
        with pytest.raises(InputError, match="fps is"):
            Film(good, fps)
    with pytest.raises(InputError, match="2 images of 2 sizes"):
        Film.of_images([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], 8)
    (tmp_path / "bad.mp4").write_text("no film")
    for place, said in ((tmp_path / "bad.mp4", "cannot be read as a film"), (tmp_path, r"holds no film\.json")):
        with pytest.raises(InputError, match=said):
            read_film(place)
    with pytest.raises(InputError, match="cannot be read as a film: No such file"):
        read_film(tmp_path / "none.mp4")


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    for name in ("frames", "x.gif"):
        with pytest.raises(OSError, match="No space"):
            film().save(tmp_path / name)
    assert not list(tmp_path.iterdir())
