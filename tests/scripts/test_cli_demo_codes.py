"""From a prompt to a file with CogView2 and CogVideo in tiny random weights, as their commands are typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from token_painters import write_painters  # noqa: E402

from sat_models.commands import draw, film  # noqa: E402
from sat_models.errors import ZooError  # noqa: E402
from sat_models.processing.film import read_film  # noqa: E402
from sat_models.zoo import load_pretrained  # noqa: E402

PROMPT = "一个红色的圆"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_painters(tmp_path_factory.mktemp("home"))


@pytest.mark.slow
def test_cogview2(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--from_pretrained", str(home / "coglm"), "--device", "cpu", "--prompt", PROMPT, "--json", "--seed", "3"]
    assert draw.main([*flags, "--style", "oil", "--output", str(tmp_path / "x.png")]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "files": [str(tmp_path / "x.png")], "prompt": PROMPT, "size": [96, 96], "steps": None, "guidance": None,
        "seed": 3,
    }  # fmt: skip
    painter = load_pretrained(home / "coglm", device="cpu")
    assert Image.open(tmp_path / "x.png").tobytes() == painter.draw(PROMPT, seed=3, style="oil").tobytes()
    assert draw.main([*flags, "--count", "2", "--size", "32x32", "--output", str(tmp_path / "many")]) == 0
    second = painter.draw(PROMPT, seed=4, size=(32, 32))
    assert Image.open(tmp_path / "many" / "0002.png").tobytes() == second.tobytes()


@pytest.mark.slow
def test_cogvideo(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--from_pretrained", str(home / "cogvideo-stage1"), "--device", "cpu", "--prompt", PROMPT, "--seed", "3"]
    assert film.main([*flags, "--frames", "9", "--output", str(tmp_path / "x.mp4"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "files": [str(tmp_path / "x.mp4")], "prompt": PROMPT, "size": [96, 96], "frames": 9, "fps": 2.0,
        "guidance": 3.0, "seed": 3,
    }  # fmt: skip
    written = read_film(tmp_path / "x.mp4")
    made = load_pretrained(home / "cogvideo-stage1", device="cpu").film(PROMPT, frames=9, seed=3)
    assert written.frames.shape == made.frames.shape and written.fps == 2
    assert abs(written.frames.astype(int) - made.frames).mean() < 12, "noise, in a codec"
    assert film.main([*flags, "--frames", "5", "--size", "32x32", "--output", str(tmp_path / "frames")]) == 0
    assert "frames  (32x32, 5 frames, 1 a second, guidance 3, seed 3)" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "name", "output"),
    [("cli_demo_image", "coglm", "x.png"), ("cli_demo_video", "cogvideo-stage1", "frames")],
)
def test_over_two_processes(home: Path, tmp_path: Path, script: str, name: str, output: str) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    flags = ["--from_pretrained", str(home / name), "--device", "cpu", "--prompt", PROMPT, "--seed", "3", "--json"]
    size = ["--frames", "5", "--size", "32x32"] if output == "frames" else []
    done = subprocess.run(
        [sys.executable, *launch, str(ROOT / "scripts" / f"{script}.py"), *flags, *size, "--output", tmp_path / output],
        capture_output=True, text=True, timeout=900, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    alone = load_pretrained(home / name, device="cpu")
    if output == "frames":
        frames = read_film(tmp_path / output).frames
        expected = alone.film(PROMPT, frames=5, size=(32, 32), seed=3).frames
    else:
        frames, expected = np.asarray(Image.open(tmp_path / output)), np.asarray(alone.draw(PROMPT, seed=3))
    assert abs(frames.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("command", "name", "flags", "said"),
    [
        (draw.main, "cogview2-dsr", (), "is a part that another model goes on with; name that one, coglm"),
        (draw.main, "coglm", ("--steps", "5"), "'steps', which it does not take"),
        (draw.main, "coglm", ("--style", "phot"), "Did you mean photo"),
        (draw.main, "cogvideo-stage1", (), "which is for film; only models that draw will do here"),
        (film.main, "coglm", (), "which is for drawing; only models that make films will do here"),
        (film.main, "cogvideo-stage2", (), "is stage 2, which goes on from stage 1"),
        (film.main, "cogvideo-stage1", ("--frames", "10"), "this model makes 5, 9, 17, 33"),
        (film.main, "cogvideo-stage1", ("--steps", "5"), "CogVideo writes a code at a time"),
    ],
)
def test_what_is_refused(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command, name: str, flags: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZooError, match=said):
        command(["--from_pretrained", str(home / name), "--device", "cpu", "--prompt", PROMPT, *flags])
    assert not list(tmp_path.iterdir())
