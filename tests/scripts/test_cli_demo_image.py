"""The command that draws: its files, its line for programs, and what it refuses before it works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
from painter_golden import sat_folder  # noqa: E402

from sat_models.commands.draw import main  # noqa: E402
from sat_models.errors import ZooError  # noqa: E402
from sat_models.models.common.diffusion import DiffusionModel  # noqa: E402
from sat_models.zoo import Painter, load_pretrained  # noqa: E402

GOLDEN = ROOT / "tests" / "golden" / "cogview3-plus-mini"
PROMPT = "A red circle"
KEYS = ["files", "prompt", "size", "steps", "guidance", "seed"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sat_folder(GOLDEN, tmp_path_factory.mktemp("painter"))


def drawn(place: Path, *flags: object) -> list[str]:
    return ["--from_pretrained", str(place), "--device", "cpu", "--steps", "2", "--size", "96x64", *map(str, flags)]


def test_an_image_and_a_line_for_programs(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "out.png"
    assert main(drawn(place, "--prompt", PROMPT, "--seed", 3, "--output", file, "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said) == KEYS
    assert said == {
        "files": [str(file)], "prompt": PROMPT, "size": [96, 64], "steps": 2, "guidance": 5.0, "seed": 3,
    }  # fmt: skip
    image = Image.open(file)
    painter = load_pretrained(place, device="cpu")
    assert image.tobytes() == painter.draw(PROMPT, size=(96, 64), steps=2, seed=3).tobytes()
    assert main(drawn(place, "--prompt", PROMPT, "--output", tmp_path / "b.jpg", "--guidance", 1)) == 0
    assert Image.open(tmp_path / "b.jpg").format == "JPEG"
    assert "b.jpg  (96x64, 2 steps, guidance 1, seed " in capsys.readouterr().out


def test_several_images_have_a_folder(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "prompts.txt").write_text("A red circle\n\nA blue square\n")
    flags = ["--prompts", tmp_path / "prompts.txt", "--count", 2, "--seed", 5, "--output", tmp_path / "many", "--json"]
    assert main(drawn(place, *flags, "--batch", 3)) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["prompt"] == ["A red circle", "A blue square"] and said["seed"] == 5
    assert said["files"] == [str(tmp_path / "many" / f"000{n}.png") for n in (1, 2, 3, 4)]
    painter = load_pretrained(place, device="cpu")
    third = painter.draw("A blue square", size=(96, 64), steps=2, seed=7)
    difference = [abs(a - b) for a, b in zip(Image.open(said["files"][2]).tobytes(), third.tobytes(), strict=True)]
    assert max(difference) <= 1
    with pytest.raises(ZooError, match=r"0001\.png is there already; name another folder"):
        main(drawn(place, *flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "x", "--steps", "0"], "--steps is 0; it must be at least 1"),
        (["--prompt", "x", "--guidance", "-1"], r"--guidance is -1\.0; it must be at least 0"),
        (["--prompt", "x", "--size", "100"], "--size is '100'; it must be WIDTHxHEIGHT"),
        (["--prompt", "x", "--size", "100x64"], "100x64 cannot be drawn"),
        (["--prompt", "x", "--size", "96x640"], "nearest sides are 96x256"),
        (["--prompt", " "], "--prompt holds no prompt"),
        (["--prompts", "/nowhere/prompts.txt"], "nowhere"),
        (["--prompt", "x", "y", "--output", "one.png"], "one file, but 2 images are to be drawn; name a folder"),
        (["--prompt", "x", "--output", "one.txt"], "an image ends in .png"),
        (["--prompt", "x", "--from_pretrained", "cogvlm-tiny"], "only models that draw will do here: cogview3-plus-3b"),
        (["--prompt", "x", "--from_pretrained", "cogview3-plus-3b"], "Download cogview3-plus-3b from"),
    ],
)
def test_what_is_refused(
    place: Path, flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAT_HOME", str(tmp_path / "home"))
    with pytest.raises((ZooError, OSError), match=message):
        main(drawn(place, *flags))
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_is_cut_is_said(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = "A red circle and a blue square and a green triangle"
    assert main(drawn(place, "--prompt", prompt, "--output", tmp_path / "out.png", "--json")) == 0
    out, err = capsys.readouterr()
    assert "tokens and the model reads 16: '" in err and "triangle' is left out" in err
    assert json.loads(out)["prompt"] == prompt


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("t5-v1_1-xxl", r"the text encoder is missing: fetch https://huggingface.co/google/t5-v1_1-xxl .*spiece.model"),
        ("vae", "the image decoder is missing: put imagekl_ch16.pt of the release into"),
    ],
)
def test_a_missing_part_is_said_before_work(
    place: Path, tmp_path: Path, without: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAT_HOME", str(tmp_path / "home"))
    copy = Path(shutil.copytree(place, tmp_path / "copy"))
    shutil.rmtree(copy / without)
    monkeypatch.setattr(Painter, "steps", lambda *_, **__: pytest.fail("it works"))
    with pytest.raises(ZooError, match=message):
        main(drawn(copy, "--prompt", PROMPT, "--output", tmp_path / "out.png"))
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("package", ["transformers", "diffusers"])
def test_a_missing_package_names_its_extra(
    place: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ZooError, match=rf"needs the package '{package}'.*cogvlm-sat-zoo\[draw\]"):
        main(drawn(place, "--prompt", PROMPT, "--output", tmp_path / "out.png"))


def test_another_family_is_named(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text('{"_class_name": "SD3Transformer2DModel"}')
    with pytest.raises(ZooError, match="SD3Transformer2DModel"):
        main(drawn(tmp_path, "--prompt", PROMPT))


def test_latents_that_are_no_numbers_leave_no_file(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = DiffusionModel.forward
    monkeypatch.setattr(DiffusionModel, "forward", lambda *given, **named: forward(*given, **named) / 0)
    with pytest.raises(ZooError, match=r"no numbers after step 1 of 2: the model ran in torch.bfloat16.*--fp32"):
        main(drawn(place, "--prompt", PROMPT, "--bf16", "--output", tmp_path / "out.png"))
    assert not list(tmp_path.iterdir())


def test_the_script_says_an_error_in_one_line_and_draws_over_two_processes(place: Path, tmp_path: Path) -> None:
    script = [str(ROOT / "scripts" / "cli_demo_image.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    wrong = [sys.executable, *script, *drawn(place, "--prompt", "", "--output", tmp_path / "no.png")]
    done = subprocess.run(wrong, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("error: --prompt holds no prompt")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *script]
    flags = drawn(place, "--prompt", PROMPT, "--output", tmp_path / "two.png", "--json", "--seed", 1)
    done = subprocess.run([*launch, *flags], capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert json.loads(line)["files"] == [str(tmp_path / "two.png")]
    alone = load_pretrained(place, device="cpu").draw(PROMPT, size=(96, 64), steps=2, seed=1)
    pairs = zip(Image.open(tmp_path / "two.png").tobytes(), alone.tobytes(), strict=True)
    assert max(abs(a - b) for a, b in pairs) <= 1
