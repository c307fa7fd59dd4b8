"""Galleries and bars: that they show what the predictions say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from sat_models.errors import InputError
from sat_models.evaluation import plots
from sat_models.evaluation.plots import grounding_gallery, score_bars


def evaluation(folder: Path, *, answer: str = "[[500,500,999,999]]", task: str = "rec") -> Path:
    folder.mkdir()
    Image.new("RGB", (100, 100), "white").save(folder / "x.png")
    entries = [
        {"id": str(n), "image": str(folder / "x.png"), "question": "Where is it?", "answer": answer,
         "boxes": [[10, 10, 40, 40]], "scores": {"iou": 0.0}}
        for n in range(5)
    ]  # fmt: skip
    (folder / "predictions.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    scores = {
        "task": task,
        "main": "iou",
        "scores": {"count": 5, "acc@0.5": 0.8, "iou": 0.5},
        "settings": {"model": "m"},
    }
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def colours(image: Image.Image, colour: str) -> int:
    from PIL import ImageColor

    wanted = ImageColor.getrgb(colour)
    return sum(count for count, value in image.convert("RGB").getcolors(1_000_000) if value == wanted)


def test_a_gallery_shows_true_and_said_boxes(tmp_path: Path) -> None:
    path = grounding_gallery(evaluation(tmp_path / "a"), tmp_path / "g.png", count=3, columns=2)
    with Image.open(path) as image:
        assert image.size == (2 * plots._SIDE, 2 * (plots._SIDE + plots._TEXT))
        assert colours(image, plots.TRUE) > 300 and colours(image, plots.SAID) > 300
        cell = image.crop((0, 0, plots._SIDE, plots._SIDE))
        scale = (plots._SIDE - 8) / 100
        assert cell.convert("RGB").getpixel((round(4 + 10 * scale), round(4 + 25 * scale))) == (44, 160, 44)
    silent = grounding_gallery(evaluation(tmp_path / "b", answer="nowhere"), tmp_path / "h.png")
    with Image.open(silent) as image:
        assert colours(image, plots.SAID) == 0 < colours(image, plots.TRUE)


def test_a_gallery_needs_boxes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no predictions with true boxes"):
        grounding_gallery(tmp_path, tmp_path / "g.png")


def test_bars(tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / name, task=task) for name, task in (("a", "rec"), ("b", "rec"), ("c", "vqa"))]
    one = score_bars(folders[:1], tmp_path / "one.png")
    three = score_bars(folders, tmp_path / "three.png")
    with Image.open(one) as small, Image.open(three) as large:
        assert large.width == 2 * small.width, "a panel for each task"
        assert colours(large, "#ff7f0e") > 0 == colours(small, "#ff7f0e"), "a colour for each folder of a task"
    with pytest.raises(InputError, match="cannot be read"):
        score_bars([tmp_path / "none"], tmp_path / "x.png")


def test_every_kind_of_evaluation_has_bars(tmp_path: Path) -> None:
    written = {
        "shapes": {"versions": ["chat"], "scores": {"rec": {"count": 2, "right": 0.5}, "vqa": {"right": 1.0}}},
        "data": {"scores": {"loss": 3.0, "perplexity": 20.0, "exact_match": 0.25}},
        "caption": {"task": "caption", "settings": {"model": "m"}, "scores": {"count": 1, "cider": 8.0, "bleu1": 0.5}},
    }
    expected = {
        "shapes": {"rec": 0.5, "vqa": 1.0},
        "data": {"exact_match": 0.25},
        "caption": {"cider": 8.0, "bleu1": 0.5},
    }
    for name, scores in written.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(json.dumps(scores))
        task, _, found = plots._scores(tmp_path / name)
        assert (task, found) == (name, expected[name])
    assert score_bars([tmp_path / name for name in written], tmp_path / "all.png").stat().st_size > 1000
