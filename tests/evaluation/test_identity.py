"""An old result never passes for a new one: what answers depend on is told apart, and scores are made anew."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sat_models.checkpoint.lock import LOCK_FILE, FolderLock
from sat_models.errors import CheckpointError, ConfigError, ZooError
from sat_models.evaluation import runner
from sat_models.evaluation.identity import model_identity
from sat_models.evaluation.readers import read_samples
from sat_models.evaluation.samples import Sample
from sat_models.files import appended_records
from sat_models.generation.sampling import SamplingOptions
from sat_models.zoo import load_pretrained

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
CASES = ROOT / "tests" / "cases" / "evaluation"
HOW = {"model": "m", "prompt": "{question}", "version": None, "options": SamplingOptions()}


def yes(asked: Any) -> list[dict[str, Any]]:
    return [{"text": "yes", "tokens": 1, "finish_reason": "stop"} for _ in asked]


def asked_twice(first: list[Sample], second: list[Sample], output: Path, task: str = "vqa") -> tuple[float, float]:
    """The main score of two runs into one folder; the second must ask nothing."""
    scores = []
    for samples, answer in ((first, yes), (second, lambda asked: pytest.fail("asked again"))):
        settings = runner.settings_of(task, samples, **HOW)
        runner.open_folder(output, settings)
        runner.predict(task, samples, answer, output, prompt="Is it?", progress=False)
        result = runner.summarise(task, samples, output, settings)
        assert json.loads((output / "scores.json").read_text()) == result
        scores.append(result["scores"][result["main"]])
    return tuple(scores)


def vqa(folder: Path, *answers: str) -> list[Sample]:
    Image.new("RGB", (8, 8)).save(folder / "x.png")
    return [
        Sample(str(n), folder / "x.png", {"question": f"Is it {n}?"}, (answer,) * 10)
        for n, answer in enumerate(answers)
    ]


def test_other_references_are_scored_from_the_kept_answers(tmp_path: Path) -> None:
    first, second = vqa(tmp_path, "yes", "yes"), vqa(tmp_path, "yes", "no")
    assert asked_twice(first, second, tmp_path / "out") == (1.0, 0.5)
    kept = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().split("\n") if line]
    assert kept[1]["references"] == ["no"] * 10 and kept[1]["scores"]["vqa_accuracy"] == 0.0


def test_other_boxes_are_scored_from_the_kept_answers(tmp_path: Path) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "x.png")
    samples = [Sample("1", tmp_path / "x.png", {"question": "Where?"}, boxes=((0.0, 0.0, 50.0, 50.0),))]
    settings = runner.settings_of("rec", samples, **HOW)
    said = [{"text": "[[000,000,500,500]]", "tokens": 9, "finish_reason": "stop"}]
    runner.open_folder(tmp_path / "out", settings)
    runner.predict("rec", samples, lambda asked: said, tmp_path / "out", prompt="{question}", progress=False)
    assert runner.summarise("rec", samples, tmp_path / "out", settings)["scores"]["acc@0.5"] == 1.0
    moved = [replace(samples[0], boxes=((50.0, 50.0, 99.0, 99.0),))]
    assert runner.settings_of("rec", moved, **HOW) == settings
    assert runner.summarise("rec", moved, tmp_path / "out", settings)["scores"]["acc@0.5"] == 0.0


def test_other_pictures_under_the_same_names_are_other_questions(tmp_path: Path) -> None:
    samples = vqa(tmp_path, "yes")
    runner.open_folder(tmp_path / "out", runner.settings_of("vqa", samples, **HOW))
    (tmp_path / "elsewhere").mkdir()
    same = [replace(sample, image=Path(shutil.copy(sample.image, tmp_path / "elsewhere"))) for sample in samples]
    runner.open_folder(tmp_path / "out", runner.settings_of("vqa", same, **HOW))  # the same bytes in another folder
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.png")
    with pytest.raises(ConfigError, match=r"other settings \(pictures_sha256 \w{12}… -> \w{12}…\)"):
        runner.open_folder(tmp_path / "out", runner.settings_of("vqa", samples, **HOW))


@pytest.mark.parametrize("changed", ["weights", "config", "dtype", "version", "tokenizer"])
def test_another_model_at_the_same_path_is_told(changed: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "cogvlm-mini", tmp_path / "model"))
    before = model_identity(load_pretrained(folder), str(folder))
    assert before == model_identity(load_pretrained(folder), str(folder)), "it does not hang on the time"
    loading: dict[str, Any] = {}
    if changed == "weights":
        (file,) = folder.glob("*/mp_rank_00_model_states.pt")
        content = torch.load(file, weights_only=True)
        content["module"]["mixins.lm.lm_head.weight"].zero_()
        torch.save(content, file)
    elif changed == "config":
        config = json.loads((folder / "model_config.json").read_text())
        (folder / "model_config.json").write_text(json.dumps({**config, "layernorm_epsilon": 0.1}))
    elif changed == "tokenizer":
        (folder / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    else:
        loading = {"dtype": "bf16"} if changed == "dtype" else {"version": "vqa"}
    after = model_identity(load_pretrained(folder, **loading), str(folder))
    name = {
        "weights": "weights_sha256",
        "config": "config_sha256",
        "version": "prompt_style",
        "tokenizer": "tokenizer_sha256",
    }.get(changed, changed)
    assert {key for key in before if before[key] != after[key]} == {name}


def test_an_output_projection_of_8_bits_is_told_apart() -> None:
    vlm = load_pretrained(GOLDEN / "cogvlm-mini")
    before = model_identity(vlm, "m")
    vlm.model.quantised_head = True
    after = model_identity(vlm, "m")
    assert {key for key in before if before[key] != after[key]} == {"head_of_8_bits"}


def test_line_separators_inside_an_answer_are_no_ends_of_lines(tmp_path: Path) -> None:
    samples = read_samples("caption", CASES / "captions_u2028.json", tmp_path)
    assert samples[0].references == ("A red circle\u2028and a blue square.",)
    for sample in samples:
        Image.new("RGB", (8, 8)).save(sample.image)
    assert asked_twice(samples, samples, tmp_path / "out", "caption")[0] >= 0
    for odd in ("\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\r"):
        answers = [{"text": f"a{odd}b", "tokens": 3, "finish_reason": "stop"}]
        folder = tmp_path / f"odd{ord(odd)}"
        folder.mkdir()
        for _ in range(2):
            runner.predict("caption", samples[:1], lambda asked, a=answers: a, folder, prompt="x", progress=False)
        (kept,) = runner.read_predictions(folder)
        assert kept["answer"] == f"a{odd}b" and (folder / "predictions.0.jsonl").read_bytes().count(b"\n") == 1


def test_one_run_at_a_time_in_a_folder(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "run", "another evaluation")
    with pytest.raises(ConfigError, match=r"run is in use by another evaluation \(process \d+ on .* since .*\)\. Wait"):
        FolderLock(tmp_path / "run", "another evaluation")
    lock.release()
    FolderLock(tmp_path / "run", "another evaluation").release()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write"):
        FolderLock(tmp_path / "file" / "run", "another evaluation")


def test_a_lock_goes_with_a_killed_process(tmp_path: Path) -> None:
    code = f"""if True:
        import pathlib, time
        from sat_models.checkpoint.lock import FolderLock
        lock = FolderLock(pathlib.Path({str(tmp_path)!r}), "another run")
        print("held", flush=True)
        time.sleep(600)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"process {holder.pid} on"):
            FolderLock(tmp_path, "another run")
        holder.kill()
        holder.wait()
    time.sleep(0.1)
    FolderLock(tmp_path, "another run").release()
    assert (tmp_path / LOCK_FILE).is_file(), "the file stays, so that no two runs lock two files of one name"


def test_a_full_disk_is_one_error(tmp_path: Path) -> None:
    said = r"cannot write /dev/full: No space left on device\. Free space.* goes on where it stopped"
    with pytest.raises(ZooError, match=said), appended_records(Path("/dev/full")) as append:
        append({"id": "1", "answer": "yes"})
    (tmp_path / "file").touch()
    with pytest.raises(ZooError, match=r"cannot write .*file"):
        runner.write_result(tmp_path / "file", {}, [])
