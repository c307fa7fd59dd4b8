"""Metrics against values computed by hand, and the evaluation loop against answerers that know or know nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sat_models.evaluation import metrics
from sat_models.evaluation.shapes import evaluate_shapes, held_out_items, score
from sat_models.training.shapes_questions import QA


def test_exact_match() -> None:
    assert metrics.exact_match(" Red.", "red") and metrics.exact_match("A  red circle", "a red circle.")
    assert not metrics.exact_match("red circle", "red")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 100, 100), (0, 0, 100, 100), 1.0),
        ((0, 0, 100, 100), (50, 0, 150, 100), 5000 / 15000),
        ((0, 0, 100, 100), (100, 0, 200, 100), 0.0),
        ((0, 0, 10, 10), (0, 0, 10, 5), 0.5),
    ],
)
def test_iou(a: tuple[int, ...], b: tuple[int, ...], expected: float) -> None:
    assert metrics.iou(a, b) == pytest.approx(expected)
    assert metrics.iou(b, a) == pytest.approx(expected)


def test_box_of_an_answer() -> None:
    assert metrics.box_iou("[[000,000,100,100]]", (0, 0, 100, 100)) == 1.0
    assert metrics.box_iou("It is at [[000,000,100,050]].", (0, 0, 100, 100)) == 0.5
    assert metrics.box_iou("over there", (0, 0, 100, 100)) == 0.0
    assert metrics.box_iou("[[100,100]]", (0, 0, 100, 100)) == 0.0


def test_listed_names() -> None:
    names = ["red circle", "orange square", "blue square"]
    assert metrics.listed_names("A red circle, an orange square and a blue square.") == names
    boxed = "A red circle [[000,000,100,100]], an orange square [[1,2,3,4]] and a blue square [[1,2,3,4]]."
    assert metrics.listed_names(boxed) == names
    assert metrics.listed_names("") == []


@pytest.mark.parametrize(
    ("answer", "right", "named", "clean"),
    [
        ("A blue square and a red circle.", True, True, True),
        ("A red circle.", False, False, True),
        ("A red circle, a blue square and a green circle.", False, True, False),
        ("A red square and a blue circle.", False, False, False),
        ("A red circle, a red circle and a blue square.", False, True, False),
        ("", False, False, True),
    ],
)
def test_caption(answer: str, right: bool, named: bool, clean: bool) -> None:
    scores = metrics.caption_scores(answer, ["red circle", "blue square"])
    assert scores == {"right": right, "every_object_named": named, "nothing_invented": clean}


def test_grounded_caption() -> None:
    objects = {"red circle": (0, 0, 100, 100), "blue square": (500, 500, 700, 700)}
    perfect = "A red circle [[000,000,100,100]] and a blue square [[500,500,700,700]]."
    assert metrics.grounded_phrases(perfect) == list(objects.items())
    assert metrics.grounded_scores(perfect, objects)["right"]
    swapped = "A red circle [[500,500,700,700]] and a blue square [[000,000,100,100]]."
    assert metrics.grounded_scores(swapped, objects) == {
        "right": False,
        "every_object_named": True,
        "nothing_invented": True,
        "found": 0.0,
    }
    half = "A red circle [[000,000,100,060]] and a blue square [[500,500,700,590]]."  # IoU 0.6 and 0.45
    assert metrics.grounded_scores(half, objects)["found"] == 0.5
    assert not metrics.grounded_scores("A red circle and a blue square.", objects)["right"]


def test_score_of_each_task() -> None:
    reg = QA("reg", "reg", "?", "A red circle.", {"object": "red circle", "box": [0, 0, 9, 9]})
    assert score(reg, "A red circle.") == {"right": True, "color": True, "form": True}
    assert score(reg, "A red square.") == {"right": False, "color": True, "form": False}
    rec = QA("rec", "rec", "?", "", {"object": "red circle", "box": [0, 0, 100, 100]})
    assert score(rec, "[[000,000,100,050]]") == {"right": True, "iou": 0.5}
    assert score(QA("vqa", "count", "?", "2"), "2") == {"right": True}


def _knowing(**options: object) -> Callable[[list], list[str]]:
    answers = iter([item.qa.answer for item in held_out_items(**options)])
    return lambda asked: [next(answers) for _ in asked]


def test_evaluation_of_perfect_answers() -> None:
    options = {"count": 20, "seed": 4, "versions": ("chat", "vqa")}
    report = evaluate_shapes(_knowing(**options), **options, batch_size=7, progress=False)
    assert all(scores["right"] == 1.0 for scores in report["scores"].values())
    assert {task: scores["count"] for task, scores in report["scores"].items()} == {
        "caption": 20,
        "grounded_caption": 20,
        "rec": 20,
        "reg": 20,
        "vqa": 120,
    }
    assert set(report["by_version"]["vqa"]) == {"vqa"} and report["scores"]["rec"]["iou"] > 0.9
    assert report["predictions"][0]["answer"] == report["predictions"][0]["expected"]


def test_evaluation_of_silence() -> None:
    report = evaluate_shapes(lambda asked: [""] * len(asked), count=5, progress=False)
    assert all(scores["right"] == 0.0 for scores in report["scores"].values())
    assert report["scores"]["grounded_caption"]["found"] == 0.0


def test_a_wrong_number_of_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="gave 1 answers to 32 questions"):
        evaluate_shapes(lambda asked: ["yes"], count=10, progress=False)
