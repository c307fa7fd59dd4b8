"""Calibration: known numbers, and what every kind of evaluation writes, prints and draws."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sat_models.commands import evaluate, make_dataset, plot_evaluation
from sat_models.errors import ConfigError, InputError
from sat_models.evaluation import runner
from sat_models.evaluation.calibration import auroc, calibration, calibrations, reliability
from sat_models.evaluation.samples import Sample
from sat_models.evaluation.tasks import is_right, right_boxes
from sat_models.generation.sampling import SamplingOptions


def answers(text: str) -> list[tuple[float, bool]]:
    """`9+ 8- 8+`: scores in tenths, right or wrong."""
    return [(int(each[:-1]) / 10, each[-1] == "+") for each in text.split()]


@pytest.mark.parametrize(
    ("text", "area"),
    [
        ("9+ 8+ 2- 1-", 1.0), ("2+ 1+ 9- 8-", 0.0), ("5+ 5-", 0.5), ("9+ 5+ 7- 1-", 0.75), ("9+ 5+ 5- 1-", 0.875),
        ("9+ 8+", None), ("3-", None),
    ],
)  # fmt: skip
def test_auroc_of_known_numbers(text: str, area: float | None) -> None:
    assert auroc(answers(text)) == area


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    draw = random.Random(0)
    some = [(draw.randint(0, 9) / 10, draw.random() < 0.6) for _ in range(200)]
    pairs = [(a > b) + (a == b) / 2 for a, right in some if right for b, wrong in some if not wrong]
    assert auroc(some) == pytest.approx(sum(pairs) / len(pairs))


@pytest.mark.parametrize(
    ("text", "accuracy", "coverage", "threshold"),
    [
        ("9+ 8+ 7- 6+ 5-", 1.0, 0.4, 0.8), ("9+ 8+ 7- 6+ 5-", 0.75, 0.8, 0.6), ("9+ 8+ 7- 6+ 5-", 0.6, 1.0, 0.5),
        ("9- 8+ 7+ 6+", 0.75, 1.0, 0.6), ("9- 8- 7-", 0.5, 0.0, None), ("9+ 8+ 8- 7+", 0.9, 0.25, 0.9),
    ],
)  # fmt: skip
def test_coverage_of_known_numbers(text: str, accuracy: float, coverage: float, threshold: float | None) -> None:
    """The second of two equal scores is not taken without the first: no threshold could."""
    found = calibration(answers(text), accuracy=accuracy)
    assert (found["coverage"], found["threshold"], found["wanted"]) == (coverage, threshold, accuracy)


def test_all_figures() -> None:
    assert calibration(answers("9+ 8+ 7+ 6+ 5+ 4+ 3- 2- 1+ 0-"), accuracy=0.9) == {
        "count": 10, "accuracy": 0.7, "auroc": 19 / 21, "wanted": 0.9, "coverage": 0.6, "threshold": 0.4,
        "surest_70%": 6 / 7,
    }  # fmt: skip


def test_reliability_has_parts_of_equal_number() -> None:
    parts = reliability(answers("1- 2- 3+ 4- 5+ 6+ 7+ 8+"), bins=4)
    assert [(round(mean, 3), share, count) for mean, share, count in parts] == [
        (0.15, 0.0, 2), (0.35, 0.5, 2), (0.55, 1.0, 2), (0.75, 1.0, 2),
    ]  # fmt: skip
    assert len(reliability(answers("5+ 6-"))) == 2, "no empty parts"


def test_boxes_have_figures_of_their_own() -> None:
    entries = [
        {"score": 0.5, "right": 1.0, "box_scores": [0.9, 0.1], "boxes_right": [1.0, 0.0]},
        {"score": 0.2, "right": 0.0, "box_scores": [0.3], "boxes_right": []},
        {"right": 1.0},
    ]
    found = calibrations({"rec": entries, "vqa": [{"score": 0.1, "right": 0.0}], "old": [{}]}, accuracy=0.9)
    assert {name: each["count"] for name, each in found.items()} == {"rec": 2, "rec, boxes": 2, "vqa": 1}
    assert found["rec, boxes"]["auroc"] == 1.0 and found["vqa"]["auroc"] is None


def test_what_is_right(tmp_path: Path) -> None:
    pope = Sample("1", tmp_path, references=("yes",), kind="pope")
    assert is_right("vqa", pope, "Yes, there is one.", {"exact_match": 0.0}) == 1.0
    assert is_right("vqa", Sample("1", tmp_path, references=("yes",)), "Yes, there is.", {"exact_match": 0.0}) == 0.0
    boxes = ((0.0, 0.0, 50.0, 50.0), (50.0, 50.0, 100.0, 100.0))
    said = "[[000,000,500,500]] [[500,500,999,999]] [[000,500,500,999]]"
    assert right_boxes("rec", Sample("1", tmp_path, boxes=boxes), said, (100, 100)) == [1.0, 1.0, 0.0]
    assert right_boxes("visual7w", Sample("1", tmp_path, boxes=boxes), said, (100, 100)) == [1.0, 0.0, 0.0]
    assert right_boxes("caption", Sample("1", tmp_path), said, (100, 100)) == []


def vqa_of(folder: Path, *truth: str) -> list[Sample]:
    Image.new("RGB", (8, 8)).save(folder / "x.png")
    return [Sample(str(n), folder / "x.png", {"question": f"{n}?"}, (answer,) * 10) for n, answer in enumerate(truth)]


def test_scores_are_kept_with_the_answers_and_truth_is_made_anew(tmp_path: Path) -> None:
    """A corrected reference changes the calibration without a new answer."""
    sureness = iter([0.9, 0.6, 0.3])
    how = {"model": "m", "prompt": "{question}", "version": None, "options": SamplingOptions(), "scores": True}

    def yes(asked: Any) -> list[dict[str, Any]]:
        made = {"text": "yes", "tokens": 1, "finish_reason": "stop", "box_scores": []}
        return [{**made, "score": next(sureness)} for _ in asked]

    for truth, area in ((("yes", "no", "yes"), 0.5), (("yes", "yes", "no"), 1.0)):
        samples, output = vqa_of(tmp_path, *truth), tmp_path / "out"
        settings = runner.settings_of("vqa", samples, **how)
        runner.open_folder(output, settings)
        runner.predict("vqa", samples, yes, output, prompt="Is it?", progress=False)
        result = runner.summarise("vqa", samples, output, settings, accuracy=0.9)
        assert result["calibration"]["vqa"]["auroc"] == area
        assert json.loads((output / "scores.json").read_text()) == result
    with pytest.raises(ConfigError, match="scores True -> False"):
        runner.open_folder(output, runner.settings_of("vqa", samples, **{**how, "scores": False}))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of the bundled model with scores."""
    folder = tmp_path_factory.mktemp("shapes") / "scored"
    flags = ["--count", "6", "--batch_size", "16", "--device", "cpu", "--accuracy", "0.9", "--scores"]
    assert evaluate.main(["--task", "shapes", *flags, "--output", str(folder)]) == 0
    return folder


def test_shapes_are_calibrated_by_task(shapes: Path) -> None:
    scores = json.loads((shapes / "scores.json").read_text())
    lines = [json.loads(line) for line in (shapes / "predictions.jsonl").read_text().splitlines()]
    assert set(scores["scores"]) == {name for name in scores["calibration"] if not name.endswith("boxes")}
    assert {"rec, boxes", "grounded_caption, boxes"} <= scores["calibration"].keys()
    for task, figures in scores["scores"].items():
        found = scores["calibration"][task]
        assert found["accuracy"] == pytest.approx(figures["right"]) and found["wanted"] == 0.9
        same = [(line["score"], line["scores"]["right"] == 1) for line in lines if line["task"] == task]
        assert calibration(same, accuracy=0.9) == found
    for line in lines:
        assert 0 <= line["score"] <= 1 and len(line["boxes_right"]) in (0, len(line["box_scores"]))


def test_a_table_and_a_plot(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, picture = json.loads((shapes / "scores.json").read_text())["calibration"], tmp_path / "r.png"
    assert plot_evaluation.main([str(shapes), "--calibration", "--reliability", str(picture)]) == 0
    wrote, head, borders, *rows = capsys.readouterr().out.splitlines()
    assert wrote == f"wrote {picture}" and head.startswith("|  | count | right | AUROC | surest 70%: right |")
    assert len({line.count("|") for line in (head, borders, *rows)}) == 1
    cells = {row.split("|")[1].strip().replace(" ", "_", 1): row.split("|")[2:7] for row in rows}
    for name in ("vqa", "rec"):
        count, right, area, _, coverage = map(str.strip, cells[name])
        figures = found[name]
        assert (int(count), right) == (figures["count"], f"{figures['accuracy']:.1%}")
        assert area == ("\u2013" if figures["auroc"] is None else f"{figures['auroc']:.2f}")
        assert coverage == f"{figures['coverage']:.0%} at 90%"
    with Image.open(picture) as image:
        assert image.width > 1000, "a panel for each kind"


def test_files_and_data_are_calibrated_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, files = tmp_path / "data", tmp_path / "files"
    for flags in (["--output", str(files), "--format", "refcoco"], ["--output", str(data)]):
        assert make_dataset.main([*flags, "--count", "4"]) == 0
    capsys.readouterr()
    how = ["--device", "cpu", "--scores", "--output"]
    annotations = ["--annotations", str(files / "refs(unc).p"), "--images", str(files / "images")]
    assert evaluate.main(["--task", "rec", *annotations, *how, str(tmp_path / "rec")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["calibration"].keys() == {"rec", "rec, boxes"} and found["settings"]["scores"] is True
    assert found["calibration"]["rec"]["accuracy"] == found["scores"]["acc@0.5"]
    shown = ["--limit", "4", *how, str(tmp_path / "scored")]
    assert evaluate.main(["--task", "data", "--data", str(data), *shown]) == 0
    kinds = json.loads(capsys.readouterr().out)["calibration"]
    assert kinds.keys() <= {"text", "boxes"} and sum(kind["count"] for kind in kinds.values()) == 4
    picture = tmp_path / "r.png"
    folders = [str(tmp_path / "rec"), str(tmp_path / "scored")]
    assert plot_evaluation.main([*folders, "--reliability", str(picture), "--calibration"]) == 0
    assert "| rec: rec | 4 |" in capsys.readouterr().out and picture.stat().st_size > 1000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--accuracy", "0.9"], "add --scores"), (["--scores", "--accuracy", "0"], "accuracy is 0.0"),
        (["--scores", "--accuracy", "1.1"], "accuracy is 1.1"), (["--scores", "--accuracy", "nan"], "accuracy is nan"),
    ],
)  # fmt: skip
def test_bad_flags(flags: list[str], message: str) -> None:
    with pytest.raises((ConfigError, InputError), match=message):
        evaluate.parse_args(flags)


def test_a_folder_without_scores(tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text(json.dumps({"task": "vqa", "scores": {}}))
    (tmp_path / "predictions.jsonl").write_text(json.dumps({"id": "1", "scores": {}}) + "\n")
    for flags in (["--calibration"], ["--reliability", str(tmp_path / "x.png")]):
        with pytest.raises(InputError, match="Evaluate with --scores"):
            plot_evaluation.main([str(tmp_path), *flags])
