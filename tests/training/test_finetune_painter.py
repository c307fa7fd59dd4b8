"""Fine-tuning a painter through the scripts, from the command to the images that the merged model draws."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from finetune_runs import ENVIRONMENT, command, finetune, losses, official
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from golden_set import folders, tensors
from painter_golden import given, sat_folder

from sat_models.checkpoint.adapter import read_adapter
from sat_models.zoo import load_pretrained

SETTINGS = {
    "max_length": None, "image_size": 128, "train_iters": 20, "save_interval": 10, "eval_interval": 10,
    "sample_steps": 2, "learning_rate": 3e-3, "lora_alpha": 8, "log_interval": 1,
}  # fmt: skip
Run = Callable[[int], Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a painter, `sat`, and images with texts in three shapes, `data`."""
    place = tmp_path_factory.mktemp("painter")
    sat_folder(next(iter(folders("cogview3-plus"))), place)
    (place / "data").mkdir()
    for number, size in enumerate([(128, 128), (150, 100), (100, 160), (128, 128), (200, 90), (130, 120)]):
        image = Image.new("RGB", size, (40 * number, 200 - 30 * number, 90))
        ImageDraw.Draw(image).ellipse((20, 20, size[0] - 30, size[1] - 30), fill=(255 - 20 * number, 60, 40 * number))
        image.save(place / "data" / f"{number}.png")
        (place / "data" / f"{number}.txt").write_text(f"An ellipse, number {number}.")
    return place


def settings_of(place: Path, **changes: object) -> dict[str, object]:
    return {**SETTINGS, "from_pretrained": place / "sat", "train_data": place / "data", **changes}


@pytest.fixture(scope="module")
def straight(place: Path) -> Run:
    """Runs of twenty steps, by the number of processes that share the model; each is made once."""

    @functools.cache
    def made(size: int) -> Path:
        folder = place / f"straight{size}"
        done = finetune(folder, processes=size, **settings_of(place, mp=size))
        assert done.returncode == 0, done.stderr[-3000:]
        (place / f"said{size}").write_text(done.stdout)
        return folder

    return made


@pytest.mark.slow
def test_a_run_learns_draws_and_leaves_a_model_that_draws(place: Path, straight: Run) -> None:
    folder = straight(1)
    curve = list(losses(folder).values())
    assert len(curve) == 20 and all(0 < loss < 10 for loss in curve)
    scores = [line["eval/loss"] for line in map(json.loads, (folder / "metrics.jsonl").open()) if "eval/loss" in line]
    assert len(scores) == 2 and (folder / "best").read_text() in ("10", "20")
    for step in ("10", "20"):
        with Image.open(folder / "samples" / step / "0.png") as image:
            assert image.size == (128, 128)
        assert json.loads((folder / "samples" / step / "prompts.jsonl").read_text())["prompt"].startswith("An ellipse")
    said = (place / "said1").read_text()
    assert "128x128" in said and "language" in said and "4,096  LoRA" in said and "cli_demo_image.py" in said
    golden = tensors(next(iter(folders("cogview3-plus"))))
    outputs = {}
    for name in (folder / "merged", folder / "20", place / "sat"):
        with torch.no_grad():
            painter = load_pretrained(name, device="cpu", dtype="float32")
            outputs[name.name] = painter.model(**given(golden, "case1"))
    torch.testing.assert_close(outputs["merged"], outputs["20"], atol=2e-5, rtol=0)
    assert (outputs["merged"] - outputs["sat"]).abs().max() > 1e-3, "nothing was learned"
    merged = load_pretrained(folder / "merged", device="cpu", dtype="float32")
    assert merged.draw("An ellipse.", size=(128, 96), steps=2, seed=0).size == (128, 96)


@pytest.mark.slow
def test_the_fourteen_arguments_train_a_painter(place: Path, straight: Run, tmp_path: Path) -> None:
    """The same settings by the documented command: the same losses, from latents that are there already."""
    cache = straight(1) / "latents"
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()}
    flags = {**settings_of(place), "latent_cache": cache, "device": "cpu", "workers": 0}
    typed = ("max_length", "from_pretrained", "train_data", "train_iters", "save_interval", "eval_interval")
    more = [part for name, value in flags.items() if name not in typed for part in (f"--{name}", value)]
    out = tmp_path / "out"
    done = official(
        1, 1, tmp_path, place / "sat", "-", "-", 4, place / "data", 20, 10, 10, out, 2, "attention", *more
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(out) == losses(straight(1)) and not (out / "latents").exists()
    assert before == {file: file.stat().st_mtime_ns for file in cache.rglob("*") if file.is_file()}
    other = finetune(tmp_path / "bf16", **settings_of(place, latent_cache=cache, precision="bf16"))
    assert other.returncode == 2 and "dtype = torch.float32, but this run has torch.bfloat16" in other.stderr


@pytest.mark.slow
def test_two_ranks_of_one_model_learn_what_one_process_learns(straight: Run) -> None:
    one, two = losses(straight(1)), losses(straight(2))
    assert len(one) == 20 and max(abs(one[step] - two[step]) for step in one) <= 1e-5
    adapters = [read_adapter(straight(size)).tensors for size in (1, 2)]
    for name, value in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_killed_and_resumed_is_bit_equal_to_straight(place: Path, straight: Run, tmp_path: Path, size: int) -> None:
    options = {"processes": size, **settings_of(place, mp=size)}
    process = subprocess.Popen(
        command(tmp_path / "killed", **options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    )
    limit = time.monotonic() + 240
    while not (tmp_path / "killed" / "latest").is_file():
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.05)
    for one in [process, *psutil.Process(process.pid).children(recursive=True)]:
        one.kill()
    process.wait(timeout=60)
    assert (tmp_path / "killed" / "latest").read_text() == "10", "killed between the two saves"
    resumed = finetune(tmp_path / "killed", **options)
    assert resumed.returncode == 0 and "going on after step 10" in resumed.stderr, resumed.stderr[-3000:]
    assert losses(tmp_path / "killed") == losses(straight(size))
    one, other = read_adapter(straight(size)).tensors, read_adapter(tmp_path / "killed").tensors
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    drawn = [folder / "samples" / "20" / "0.png" for folder in (straight(size), tmp_path / "killed")]
    assert drawn[0].read_bytes() == drawn[1].read_bytes()
    other = finetune(tmp_path / "killed", **{**options, "image_size": 96})
    assert other.returncode != 0 and "image_size = [128, 128], but this one has [96, 96]" in other.stderr


@pytest.mark.slow
def test_all_weights_train_in_one_and_two_processes(place: Path, tmp_path: Path) -> None:
    """Everything in full, clipped by the norm of all gradients: the same losses, and steps that draw by themselves."""
    curves = []
    for size in (1, 2):
        options = settings_of(place, mp=size, trainable="all", lora_rank=-1, lora_alpha=None, learning_rate=1e-3)
        done = finetune(tmp_path / str(size), processes=size, **{**options, "train_iters": 8, "eval_interval": 0})
        assert done.returncode == 0, done.stderr[-3000:]
        curves.append(losses(tmp_path / str(size)))
    assert max(abs(curves[0][step] - curves[1][step]) for step in curves[0]) <= 1e-5
    images = [
        load_pretrained(tmp_path / name, device="cpu", dtype="float32").draw("x", size=(64, 64), steps=2, seed=0)
        for name in ("1", "1/merged")
    ]
    assert images[0].tobytes() == images[1].tobytes()


@pytest.mark.slow
def test_a_dry_run_needs_no_encoder_and_bad_images_are_left_out(place: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    entries = [{"image": str(place / "data" / f"{n}.png"), "text": f"An ellipse, number {n}."} for n in range(3)]
    data.write_text("\n".join(map(json.dumps, [*entries, {"image": "lost.png", "text": "Nothing."}])))
    refused = finetune(tmp_path / "out", "--dry-run", **settings_of(place, train_data=data))
    assert refused.returncode == 2 and "lost.png' is not there" in refused.stderr and "Traceback" not in refused.stderr
    options = settings_of(place, train_data=data, on_bad_sample="skip", valid_share=0)
    said = finetune(tmp_path / "out", "--dry-run", **options)
    assert said.returncode == 0 and "3 image(s) with texts, 0 for validation" in said.stdout, said.stderr[-2000:]
    assert "activations" in said.stdout and not (tmp_path / "out").exists()
