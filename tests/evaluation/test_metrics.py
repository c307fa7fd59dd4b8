"""Metrics against values computed by hand, and the evaluation loop against answerers that know or know nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sat_models.evaluation import metrics
from sat_models.evaluation.samples import Sample
from sat_models.evaluation.tasks import TASKS
from sat_models.evaluation.vqa_answers import normalise_vqa
from sat_models.shapes.held_out import held_out_items
from sat_models.shapes.scoring import evaluate_shapes, score


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
    assert scores == {"same_things": right, "every_object_named": named, "nothing_invented": clean}


def test_grounded_phrases() -> None:
    text = "A red circle [[000,000,100,100]] and a blue square [[500,500,700,700]]."
    boxes = [("red circle", (0, 0, 100, 100)), ("blue square", (500, 500, 700, 700))]
    assert metrics.grounded_phrases(text) == boxes


@pytest.mark.parametrize(
    ("answer", "compared"),
    [
        ("The two dogs!", "2 dogs"),
        ("None.", "0"),
        ("a Blue-Green  shirt", "blue green shirt"),
        ("blue - green", "blue green"),
        ("3.5", "3.5"),
        ("10,000 people", "10000 people"),
        ("yes, it is", "yes it is"),
        ("yes,no", "yes no"),
        ("Dont know", "don't know"),
        ("couldntve", "couldntve"),
        ("couldn'tve", "couldn't've"),
        ("it's the dog's", "it's dog's"),
        ("red\nand\tblue", "red and blue"),
        ("an apple?", "apple"),
    ],
)
def test_normalisation_of_the_vqa_challenge(answer: str, compared: str) -> None:
    assert normalise_vqa(answer) == compared


@pytest.mark.parametrize(
    ("equal", "expected"),
    [
        (0, 0.0),
        (1, 9 / 10 * 1 / 3),  # left out once: 0; nine times 1/3
        (2, 2 / 10 * 1 / 3 + 8 / 10 * 2 / 3),
        (3, 3 / 10 * 2 / 3 + 7 / 10),
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_vqa_soft_accuracy(equal: int, expected: float) -> None:
    references = ["red"] * equal + [f"other {n}" for n in range(10 - equal)]
    assert metrics.vqa_soft_accuracy("Red.", references) == pytest.approx(expected)


def test_vqa_soft_accuracy_of_few_references() -> None:
    assert metrics.vqa_soft_accuracy("two", ["2"]) == 1.0
    assert metrics.vqa_soft_accuracy("two", ["3"]) == 0.0
    with pytest.raises(ValueError, match="at least one reference"):
        metrics.vqa_soft_accuracy("two", [])


def test_anls() -> None:
    assert metrics.anls("Hello World", ["hello  world"]) == 1.0
    assert metrics.anls("hello wrld", ["goodbye", "hello world"]) == pytest.approx(1 - 1 / 11)
    assert metrics.anls("abcd", ["abxy"]) == 0.5, "one half still counts"
    assert metrics.anls("abc", ["axy"]) == 0.0, "one third does not"
    assert metrics.anls("", [""]) == 1.0
    assert metrics.edit_distance("kitten", "sitting") == 3
    with pytest.raises(ValueError, match="at least one reference"):
        metrics.anls("x", [])


def test_pope() -> None:
    answers = ["Yes, there is.", "No", "There is not a dog. Yes", "yes", "I see no cat", "A dog"]
    assert [metrics.yes_or_no(answer) for answer in answers] == ["yes", "no", "no", "yes", "no", "yes"]
    scores = metrics.pope_scores(answers, ["yes", "yes", "no", "no", "no", "yes"])
    # said yes 3 times, 2 of them rightly; 3 yes in truth
    assert scores == pytest.approx(
        {"accuracy": 4 / 6, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes_share": 0.5}
    )
    assert metrics.pope_scores(["no"], ["no"])["f1"] == 0.0
    with pytest.raises(ValueError, match="1 answers and 2 labels"):
        metrics.pope_scores(["no"], ["no", "yes"])
    with pytest.raises(ValueError, match="yes or no"):
        metrics.pope_scores(["no"], ["maybe"])


def test_matching_of_phrases_and_boxes() -> None:
    true = [("man", (0, 0, 10, 10)), ("man", (20, 0, 30, 10)), ("hat", (0, 0, 10, 10))]
    said = [("man", (0, 0, 10, 9)), ("hat", (20, 0, 30, 10)), ("man", (0, 0, 10, 10))]
    assert metrics.matched(said, true, with_phrase=False) == 3
    assert metrics.matched(said, true, with_phrase=True) == 1, "one box of the man is used up, the hat's is elsewhere"
    assert metrics.matched([], true, with_phrase=True) == 0
    assert metrics.bare_phrase("The red  Hat.") == "red hat"


def test_scores_of_the_tasks() -> None:
    size = (200, 100)
    boxed = Sample("1", Path("x"), {"expression": "it"}, boxes=((20, 10, 120, 60),))
    assert TASKS["rec"].score(boxed, "[[100,100,600,600]]", size) == {"acc@0.5": 1.0, "iou": 1.0, "boxes": 1.0}
    half = TASKS["rec"].score(boxed, "at [[100,100,600,350]]", size)  # half as high
    assert half == {"acc@0.5": 1.0, "iou": 0.5, "boxes": 1.0}
    assert TASKS["rec"].score(boxed, "nowhere", size) == {"acc@0.5": 0.0, "iou": 0.0, "boxes": 0.0}
    people = Sample("1", Path("x"), {"question": "?"}, ("red", "red", "blue"))
    assert TASKS["vqa"].score(people, "red", size)["exact_match"] == 1.0
    pointing = Sample("1", Path("x"), {"question": "?"}, boxes=((0, 0, 50, 50), (100, 50, 150, 100)))
    right, wrong = "[[000,000,250,500]]", "[[500,500,750,999]]"
    assert TASKS["visual7w"].score(pointing, right, size) == {"accuracy": 1.0, "acc@0.5": 1.0, "iou": 1.0}
    assert TASKS["visual7w"].score(pointing, wrong, size)["accuracy"] == 0.0
    telling = Sample("1", Path("x"), {"question": "?"}, choices=("A red hat.", "A red cap.", "A tree."))
    assert TASKS["visual7w"].score(telling, "red hat", size) == {"accuracy": 1.0, "exact_match": 0.0}
    assert TASKS["visual7w"].score(telling, "a tree", size)["accuracy"] == 0.0
    phrases = Sample("1", Path("x"), choices=("A man", "a hat"), boxes=((0, 0, 100, 100), (100, 0, 200, 50)))
    full = "A man [[000,000,500,999]] and a hat [[500,000,999,500]]"
    assert TASKS["grounded-caption"].score(phrases, full, size)["right"] == 1.0
    less = TASKS["grounded-caption"].score(phrases, "A man [[000,000,500,999]] and a dog [[500,000,999,500]]", size)
    assert less["box_f1"] == 1.0 and less["phrase_precision"] == less["phrase_recall"] == less["phrase_f1"] == 0.5
    none = TASKS["grounded-caption"].score(phrases, "A man and a hat", size)
    assert set(none.values()) == {0.0}


def test_scores_of_lists_of_things() -> None:
    sample = Sample("1", Path("x"), {}, ("A red circle and a blue square.", "Two shapes."))
    names = ("exact_match", "same_things", "every_object_named", "nothing_invented")
    for answer, values in (
        ("a red circle and a blue square", (1, 1, 1, 1)),
        ("A blue square and a red circle.", (0, 1, 1, 1)),
        ("A red circle.", (0, 0, 0, 1)),
        ("A red circle, a blue square and a green circle.", (0, 0, 1, 0)),
        ("two shapes", (1, 1, 1, 1)),
    ):
        assert TASKS["caption"].score(sample, answer, (9, 9)) == dict(zip(names, values, strict=True)), answer
    boxed = "A red circle [[000,000,100,100]] and a blue square [[500,500,700,700]]."
    assert TASKS["reg"].score(sample, boxed, (9, 9))["exact_match"] == 1.0


def test_scores_of_grounded_captions() -> None:
    size, boxes = (1000, 1000), ((0, 0, 100, 100), (500, 500, 700, 700))
    sample = Sample("1", Path("x"), boxes=boxes, choices=("A red circle", "a blue square"))

    def scores(text: str) -> tuple[float, float]:
        found = TASKS["grounded-caption"].score(sample, text, size)
        return found["right"], found["phrase_recall"]

    assert scores("A red circle [[000,000,100,100]] and a blue square [[500,500,700,700]].") == (1.0, 1.0)
    assert scores("A red circle [[500,500,700,700]] and a blue square [[000,000,100,100]].") == (0.0, 0.0), "swapped"
    half = "A red circle [[000,000,100,060]] and a blue square [[500,500,700,590]]."  # IoU 0.6 and 0.45
    assert scores(half) == (0.0, 0.5)
    more = "A red circle [[000,000,100,100]], a blue square [[500,500,700,700]] and a dog [[1,1,9,9]]."
    assert scores(more) == (0.0, 1.0)
    broken = "A red circle [[000,000,100,100]], a blue square [[500,500,700,700]] and a blue square [[5005,700]]."
    assert scores(broken) == (0.0, 1.0), "a box of two values is a wrong box"
    assert scores("A red circle and a blue square.") == (0.0, 0.0)


def test_score_of_each_task_of_the_world() -> None:
    asked = {item.qa.task: item for item in held_out_items(count=1, seed=0, versions=["chat"])}
    thing = asked["reg"].thing()
    other = "circle" if thing.form != "circle" else "square"
    assert score(asked["reg"], f"A {thing.name}.") == {
        "right": 1, "exact_match": 1, "same_things": 1, "every_object_named": 1, "nothing_invented": 1, "color": 1,
        "form": 1,
    }  # fmt: skip
    said = score(asked["reg"], f"A {thing.color} {other}.")
    assert (said["right"], said["color"], said["form"]) == (0, 1, 0)
    assert score(asked["rec"], "[[000,000,001,001]]") == {"right": 0, "acc@0.5": 0, "iou": 0, "boxes": 1}
    assert score(asked["vqa"], asked["vqa"].qa.answer)["right"] == 1


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
    assert {kind: scores["accuracy"] for kind, scores in report["visual7w"].items()} == {"pointing": 1, "telling": 1}
    assert set(report["vqa_by_objects"]) == {1, 2, 3} and set(report["vqa_by_objects"][3].values()) == {1.0}
    assert "left_right" in report["vqa_by_objects"][2] and "left_right" not in report["vqa_by_objects"][1]


@pytest.mark.parametrize("world", [{"digit_share": 1.0}, {"other_eyes": True}])
def test_evaluation_of_digits_and_through_other_eyes(world: dict[str, Any]) -> None:
    options = {"count": 12, "seed": 0, "versions": ("chat",), **world}
    images: list[Image.Image] = []

    def answer(asked: list) -> list[str]:
        images.extend(image for image, _, _ in asked)
        return knowing(asked)

    knowing = _knowing(**options)
    report = evaluate_shapes(answer, **options, progress=False)
    assert all(scores["right"] == 1.0 for scores in report["scores"].values())
    assert ("digit" in report["vqa"]) == ("digit_share" in world) and report["other_eyes"] == ("other_eyes" in world)
    drawn = {item.image: item.draw() for item in held_out_items(**options)}
    assert images[0].tobytes() == drawn[0].tobytes() and images[-1].tobytes() == drawn[11].tobytes()


def test_evaluation_of_silence() -> None:
    report = evaluate_shapes(lambda asked: [""] * len(asked), count=5, progress=False)
    assert all(scores["right"] == 0.0 for scores in report["scores"].values())
    assert report["scores"]["grounded_caption"]["phrase_recall"] == 0.0
    assert report["visual7w"]["telling"] == {"count": 15, "accuracy": 0.0, "exact_match": 0.0}


def test_a_wrong_number_of_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="gave 1 answers to 32 questions"):
        evaluate_shapes(lambda asked: ["yes"], count=10, progress=False)
