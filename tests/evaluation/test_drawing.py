"""The judge of painters: what it asks, what it takes for right, and what it says of right and wrong images."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sat_models.zoo
from sat_models.commands.evaluate import main
from sat_models.errors import ConfigError, InputError
from sat_models.evaluation.drawing import Check, checks_of, drawn_images, judge, summary
from sat_models.evaluation.wishes import Wanted, Wish
from sat_models.shapes.drawing import draw
from sat_models.shapes.looking import look, scores_of
from sat_models.shapes.prompts import sample_scene_of, unseen_wishes

SMALL_RED = Wanted("circle", "red", "small", places=(("left", 1),))
WISH = Wish("A small red circle left of a blue square.", "places", (SMALL_RED, Wanted("square", "blue")), only=True)


class FakePainter:
    """Draws scenes of the world: what is asked for, or always the same."""

    def __init__(self, wishes: Sequence[Wish], *, right: bool) -> None:
        self.wishes, self.right, self.seeds = {wish.prompt: wish for wish in wishes}, right, []
        self.checkpoint = type("Files", (), {"files": ()})()

    def draw(self, prompts: Sequence[str], *, seed: int, **options: Any) -> list[Image.Image]:
        self.seeds += [seed + number for number in range(len(prompts))]
        wrong = Wish("", "", (Wanted("triangle", "purple", "large"),), only=True)
        chosen = [self.wishes[prompt] if self.right else wrong for prompt in prompts]
        return [draw(sample_scene_of(wish, random.Random(seed + n))) for n, wish in enumerate(chosen)]


def seeing(asked: Sequence[tuple[Image.Image, str]]) -> list[dict[str, Any]]:
    """Answers of somebody who only counts, and says yes otherwise."""
    return [{"text": f"There are {len(look(image))}." if "many" in question else "Yes."} for image, question in asked]


def test_each_kind_of_question_is_asked() -> None:
    assert [(check.kind, check.question, check.expected) for check in checks_of(WISH)] == [
        ("count", "How many shapes are there?", "2"),
        ("object", "Is there a red circle?", "yes"),
        ("color", "What color is the circle?", "red"),
        ("size", "Is the red circle small or large?", "small"),
        ("place", "Is the red circle left or right of the blue square?", "left"),
        ("object", "Is there a blue square?", "yes"),
        ("color", "What color is the square?", "blue"),
    ]
    benches = Wish("three benches", "counting", (Wanted("bench", count=3),))
    assert [check.question for check in checks_of(benches)] == ["How many benches are there?"]
    three = Wish("", "count", (Wanted("shape", "red", count=2),), only=True)
    assert [(c.question, c.expected) for c in checks_of(three)] == [
        ("How many shapes are there?", "2"), ("How many red shapes are there?", "2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "expected", "answer", "right"),
    [
        ("object", "yes", "Yes, there is.", True),
        ("object", "yes", "No.", False),
        ("count", "2", "There are two dogs.", True),
        ("count", "2", "12", False),
        ("count", "2", "Some.", False),
        ("color", "gray", "The bench is grey.", True),
        ("color", "red", "Red and blue.", False),
        ("place", "left", "to the left", True),
        ("place", "left", "It is right.", False),
    ],
)
def test_what_is_a_right_answer(kind: str, expected: str, answer: str, right: bool) -> None:
    choices = {"color": ("red", "blue", "gray"), "place": ("left", "right")}.get(kind, ())
    assert Check(kind, "", expected, choices).is_right(answer) is right


def test_judge_and_rule_stand_side_by_side() -> None:
    wishes = unseen_wishes(10, 3)
    records = {}
    for whose, right in (("drawn", False), ("real", True)):
        images = FakePainter(wishes, right=right).draw([wish.prompt for wish in wishes], seed=0)
        records[whose] = judge(wishes, images.__getitem__, seeing, rule=scores_of, whose=whose, batch_size=3)
    scores = summary(records)["all"]
    assert scores["real"]["rule"]["right"] == 1 and scores["real"]["judge"]["count"] == 1
    assert scores["drawn"]["rule"]["right"] < 0.2 and scores["drawn"]["judge"]["count"] < 0.5
    assert scores["real"]["judge"]["color"] == 0, "it never says a colour"
    assert scores["real"]["count"] == 10 and 0 <= scores["real"]["agree"] < 1


def test_what_was_drawn_or_judged_is_not_done_again(tmp_path: Path) -> None:
    wishes = unseen_wishes(5, 0)
    prompts = [wish.prompt for wish in wishes]
    painter = FakePainter(wishes, right=True)
    files = drawn_images(painter, prompts, tmp_path, seed=7, batch_size=2)
    before = [file.read_bytes() for file in files]
    files[3].unlink()
    painter.seeds.clear()
    assert drawn_images(painter, prompts, tmp_path, seed=7, batch_size=2) == files
    assert painter.seeds == [9, 10] and [file.read_bytes() for file in files] == before
    kept, asked = tmp_path / "kept.jsonl", []

    def answer(questions: Sequence[tuple[Image.Image, str]]) -> list[dict[str, Any]]:
        asked.append(len(questions))
        return seeing(questions)

    first = judge(wishes[:2], lambda n: Image.open(files[n]), answer, kept=kept)
    again = judge(wishes, lambda n: Image.open(files[n]), answer, kept=kept)
    assert again[:2] == first and len(asked) == 2 and asked[1] == sum(len(checks_of(w)) for w in wishes[2:])


@pytest.fixture
def painters(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "right" and "wrong" are painters."""
    load = sat_models.zoo.load_pretrained

    def load_any(name: str, **options: Any) -> Any:
        if name in ("right", "wrong"):
            return FakePainter(unseen_wishes(3, 0), right=name == "right")
        return load(name, **options)

    monkeypatch.setattr(sat_models.zoo, "load_pretrained", load_any)


def test_the_command_tells_right_images_from_wrong_ones(
    tmp_path: Path, painters: None, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {}
    for painter in ("right", "wrong"):
        flags = ["--task", "drawing", "--painter", painter, "--count", "3", "--device", "cpu"]
        assert main([*flags, "--output", str(tmp_path / painter)]) == 0
        said = json.loads(capsys.readouterr().out)
        assert said == json.loads((tmp_path / painter / "scores.json").read_text())
        scores[painter] = said["scores"]["all"]
        lines = (tmp_path / painter / "predictions.jsonl").read_text().splitlines()
        assert len(lines) == 6 and json.loads(lines[0])["id"] == "drawn/1"
    assert scores["right"]["drawn"]["rule"]["right"] == scores["wrong"]["real"]["rule"]["right"] == 1
    assert scores["wrong"]["drawn"]["rule"]["right"] == 0
    assert scores["right"]["drawn"]["judge"]["right"] > scores["wrong"]["drawn"]["judge"]["right"]
    with pytest.raises(ConfigError, match="other settings"):
        main([*flags, "--seed", "1", "--output", str(tmp_path / "right")])


@pytest.mark.parametrize(
    ("flags", "error", "said"),
    [
        ([], ConfigError, "--painter, --output"),
        (["--painter", "right", "--output", "o", "--limit", "3"], ConfigError, "--annotations"),
        (["--painter", "right", "--output", "o", "--prompt", "What?"], ConfigError, "{question}"),
        (["--painter", "right", "--output", "o", "--size", "big"], (ConfigError, InputError), "WIDTHxHEIGHT"),
        (["--painter", "right", "--output", "o", "--images", "none"], InputError, "0001.png"),
        (["--painter", "right", "--output", "o", "--other_eyes"], ConfigError, "does not read"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_drawn(
    flags: list[str], error: Any, said: str, tmp_path: Path, painters: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        main(["--task", "drawing", *flags])
    assert not (tmp_path / "o" / "images").exists()
