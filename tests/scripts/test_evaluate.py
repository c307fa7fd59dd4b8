"""scripts/evaluate.py and its neighbours as programs: files in a public format, scores, two processes, plots."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sat_models.errors import ConfigError
from sat_models.evaluation.readers import read_samples

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", "--nproc-per-node=2"]


def script(name: str, *flags: object, cwd: Path, launcher: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(launcher or []), str(ROOT / "scripts" / name), *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=900, check=False)


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_from_files_to_scores_and_plots_with_one_process_and_two(tmp_path: Path) -> None:
    made = script("make_dataset.py", "--format", "refcoco", "--output", "data", "--count", 5, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    files = ["--annotations", "data/refs(unc).p", "--images", "data/images", "--device", "cpu"]
    one = script("evaluate.py", "--task", "rec", *files, "--output", "one", "--batch_size", 3, cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    scores = json.loads(one.stdout)
    assert scores == json.loads((tmp_path / "one" / "scores.json").read_text())
    assert scores["scores"]["count"] == len(lines(tmp_path / "one")) == 5
    assert scores["scores"]["boxes"] == 1.0, "the bundled model answers with a box"
    two = script("evaluate.py", "--task", "rec", *files, "--output", "two", cwd=tmp_path, launcher=TORCHRUN)
    assert two.returncode == 0, two.stderr
    assert lines(tmp_path / "two") == lines(tmp_path / "one")
    again = script("evaluate.py", "--task", "rec", *files, "--output", "one", "--prompt", "What?", cwd=tmp_path)
    assert again.returncode == 2 and "other settings" in again.stderr
    drawn = script("plot_evaluation.py", "one", "two", "--bars", "b.png", "--gallery", "g.png", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "b.png").stat().st_size > 1000 and (tmp_path / "g.png").stat().st_size > 1000


SAME = {
    ("coco-captions", "caption", "captions_val2014.json"): ("scores", "caption"),
    ("vqav2", "vqa", "v2_mscoco_val2014_annotations.json"): ("scores", "vqa"),
    ("pope", "vqa", "coco_pope_random.jsonl"): ("vqa", "exist"),
    ("refcoco", "rec", "refs(unc).p"): ("scores", "rec"),
    ("visual-genome", "reg", "region_descriptions.json"): ("scores", "reg"),
    ("flickr30k-entities", "grounded-caption", "."): ("scores", "grounded_caption"),
    ("visual7w-pointing", "visual7w", "dataset_v7w_pointing.json"): ("visual7w", "pointing"),
    ("visual7w-telling", "visual7w", "dataset_v7w_telling.json"): ("visual7w", "telling"),
}
"""Format, task and annotations -> where the same figures stand in what `--task shapes` gives."""


@pytest.mark.slow
def test_public_files_give_the_figures_of_shapes(tmp_path: Path) -> None:
    how = ["--device", "cpu", "--batch_size", 32]
    done = script("evaluate.py", "--task", "shapes", "--count", 32, "--output", "shapes", *how, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shapes = json.loads(done.stdout)
    for (layout, task, file), (part, name) in SAME.items():
        made = script("make_dataset.py", "--format", layout, "--output", layout, "--count", 32, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        folder = tmp_path / layout
        files = ["--annotations", folder / file, "--images", folder / "images", "--prompts"]
        files += [folder / "prompts.json", "--output", folder / "scores"]
        if layout == "vqav2":
            files += ["--questions", folder / "v2_OpenEnded_mscoco_val2014_questions.json"]
        done = script("evaluate.py", "--task", task, *files, *how, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        scores, same = json.loads(done.stdout)["scores"], shapes[part][name]
        shared = {score: scores[score] for score in scores if score in same}
        assert shared == {score: same[score] for score in shared}, layout
        assert {"count", "exact_match"} <= set(shared) or len(shared) > 3, "the figures have the same names"


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("evaluate.py", ["--task", "vqa"], "needs --annotations, --images, --output"),
        ("evaluate.py", ["--task", "rec", "--annotations", "x.p", "--images", ".", "--output", "o"], "'x.p' cannot be"),
        (
            "evaluate.py",
            ["--task", "rec", "--prompt=x", "--prompts=p", "--annotations=x.p", "--images=.", "--output=o"],
            "give one of them",
        ),
        ("evaluate.py", ["--task=data", "--data=x", "--top_k=3", "--seed=1"], "does not read --seed, --top_k; leave"),
        ("evaluate.py", ["--task=data", "--data=.", "--limit=0"], "--limit is 0; it must be at least 1"),
        ("evaluate.py", ["--task=data", "--data=x", "--data_format=y"], "data format 'y'"),
        ("evaluate.py", ["--task=rec", "--data_format=json"], "--task rec does not read --data_format; leave it out"),
        ("evaluate.py", ["--task=caption", "--questions=q"], "--task caption does not read --questions; leave it out"),
        ("evaluate.py", ["--task=vqa", "--instances=i"], "--task vqa does not read --instances; leave it out"),
        ("evaluate.py", ["--task=reg", "--split=val"], "--task reg does not read --split; leave it out"),
        ("evaluate.py", ["--task=shapes", "--version=vqa"], "--task shapes does not read --version; leave it out"),
        ("make_dataset.py", ["--output=x", "--format=pope", "--min-objects=2"], "pope does not read --min-objects"),
        ("make_dataset.py", ["--output=x", "--task=captcha", "--canonical"], "captcha does not read --canonical"),
        ("make_dataset.py", ["--output=x", "--digits=5"], "--task mixed does not read --digits"),
        ("make_dataset.py", ["--output=x", "--min-objects=5"], "5 to 3 objects in a picture"),
        ("make_dataset.py", ["--output=x", "--min-objects=60", "--max-objects=60"], "no more than 6"),
        ("make_dataset.py", ["--output=x", "--format=refcoco", "--max-objects=0"], "1 to 0 objects in a picture"),
        ("merge_lora.py", ["--from_pretrained=.", "--base=cogvlm-tiny", "--output=o"], "does not read --base; leave"),
        ("plot_evaluation.py", ["x"], "nothing to draw"),
        ("evaluate.py", ["--batch_size=0"], "--batch_size is 0; it must be at least 1"),
        ("evaluate.py", ["--digit_share=1.5"], "--digit_share is 1.5; it must be from 0"),
        ("evaluate.py", ["--digit_share=0.5", "--other_eyes"], "--other_eyes draws no digits; leave out --digit_share"),
        ("evaluate.py", ["--task=vqa", "--other_eyes"], "--task vqa does not read --other_eyes; leave it out"),
        ("evaluate.py", ["--count=-3"], "--count is -3; it must be at least 1"),
        ("evaluate.py", ["--task=data", "--data=.", "--max_new_tokens=0"], "--max_new_tokens is 0; it must be"),
        ("evaluate.py", ["--top_p=nan", "--from_pretrained=/no/such"], "top_p is nan"),
        ("quantisation.py", ["--count=0"], "--count is 0; it must be at least 1"),
        ("make_dataset.py", ["--output=x", "--count=-1"], "--count is -1; it must be at least 1"),
        ("train_tiny.py", ["--steps=-1"], "--steps is -1; it must be at least 1"),
        ("train_tiny.py", ["--learning-rate=inf"], "--learning_rate is inf; it must be above 0"),
        ("train_tiny_painter.py", ["--codec-steps=-1"], "--codec_steps is -1; it must be at least 0"),
        ("train_tokenizer.py", ["--output=x", "--count=0"], "--count is 0; it must be at least 1"),
        ("measure_loading.py", ["--gigabytes=nan"], "--gigabytes is nan; it must be above 0"),
        ("measure_loading.py", ["--gigabytes=-inf"], "--gigabytes is -inf; it must be above 0"),
        ("measure_packing.py", ["--image_size", "100"], "--image_size is 100; it must be a multiple of the patch, 14"),
        ("measure_strict.py", ["--answers=0"], "--answers is 0; it must be at least 1"),
        ("measure_kernels.py", ["--rows", "4", "0"], "--rows is 0; it must be at least 1"),
        ("bench.py", ["--batches", "1", "-1"], "--batches is -1; it must be at least 1"),
        ("bench.py", ["--heads=0"], "--heads is 0; it must be at least 1"),
        ("plot_evaluation.py", ["x", "--columns=0"], "--columns is 0; it must be at least 1"),
        ("validate_dataset.py", ["x", "--most=-1"], "--most is -1; it must be at least 0"),
        ("caption.py", ["x", "y", "--batch_size=0"], "--batch_size is 0; it must be at least 1"),
        ("evaluate.py", ["--output=/dev/null/x"], "cannot write /dev/null/x/.lock"),
        ("evaluate.py", ["--task=data", "--data=x", "--output=/dev/null/x"], "cannot write /dev/null/x/.lock"),
    ],
)
def test_what_the_user_can_mend_is_one_line(name: str, flags: list[str], message: str, tmp_path: Path) -> None:
    done = script(name, *flags, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_adapter_says_its_alpha_itself(tmp_path: Path) -> None:
    (tmp_path / "adapter.safetensors").touch()
    flags = ["--from_pretrained=adapter.safetensors", "--alpha=2", "--output=o"]
    done = script("merge_lora.py", *flags, cwd=tmp_path)
    assert done.returncode == 2 and "does not read --alpha; leave it out" in done.stderr


@pytest.mark.parametrize(
    ("task", "form", "option"),
    [
        ("caption", "a COCO captions file", "split"),
        ("vqa", "a POPE file", "questions"),
        ("vqa", "a POPE file", "split"),
        ("vqa", "a file of questions that name their pictures", "split"),
    ],
)
def test_what_the_form_of_a_file_does_not_use_is_refused(task: str, form: str, option: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.jsonl" if "POPE" in form else "a.json")
    path.write_text("" if "POPE" in form else json.dumps({"images": [], "annotations": []}))
    (tmp_path / "q.json").write_text(json.dumps({"questions": [{"question_id": 1, "file_name": "1.png"}]}))
    options = {"questions": tmp_path / "q.json"} if option == "questions" or "of questions" in form else {}
    with pytest.raises(ConfigError, match=f"is {form}.*--{option} is not read"):
        read_samples(task, path, tmp_path, **{option: "val", **options})


@pytest.mark.slow
def test_one_process_of_two_writes_what_shapes_gives(tmp_path: Path) -> None:
    flags = ["--task=shapes", "--count=2", "--device=cpu"]
    one = script("evaluate.py", *flags, "--output=one", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    two = script("evaluate.py", *flags, "--output=two", cwd=tmp_path, launcher=TORCHRUN)
    assert two.returncode == 0, two.stderr
    assert json.loads(two.stdout) == json.loads(one.stdout), "printed once, by the first"
    assert lines(tmp_path / "two") == lines(tmp_path / "one")


@pytest.mark.slow
def test_data_of_a_forced_format_whose_pictures_lie_elsewhere(tmp_path: Path) -> None:
    made = script("make_dataset.py", "--output=pictures", "--count=3", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    (tmp_path / "asked.txt").write_text((tmp_path / "pictures" / "example_inputs.jsonl").read_text())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pictures").rename(tmp_path / "elsewhere" / "pictures")
    flags = ["--task=data", "--data=asked.txt", "--data_format=json", "--image_root=elsewhere/pictures"]
    done = script("evaluate.py", *flags, "--limit=2", "--device=cpu", "--output=scores", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / "scores")) == 2 and json.loads(done.stdout)["scores"]["loss"] > 0
