"""What prompts ask for, in GenEval's form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sat_models.errors import InputError
from sat_models.evaluation.wishes import Wanted, Wish, read_wishes

GENEVAL = [
    {"tag": "counting", "include": [{"class": "clock", "count": 3}], "exclude": [{"class": "clock", "count": 4}],
     "prompt": "a photo of three clocks"},
    {"tag": "position", "include": [{"class": "dog", "count": 1},
                                    {"class": "teddy bear", "count": 1, "position": ["left of", 0]}],
     "prompt": "a photo of a teddy bear left of a dog"},
    {"tag": "colors", "include": [{"class": "bench", "count": 1, "color": "brown"}], "prompt": "a brown bench"},
]  # fmt: skip


def written(folder: Path, *lines: object) -> Path:
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return file


def test_genevals_lines_say_what_is_wanted(tmp_path: Path) -> None:
    counting, position, color = read_wishes(written(tmp_path, *GENEVAL))
    assert counting == Wish("a photo of three clocks", "counting", (Wanted("clock", count=3),))
    assert position.things[1] == Wanted("teddy bear", places=(("left", 0),))
    assert color.things[0].name == "brown bench" and color.kind == "colors"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    things = (Wanted("circle", "red", "small", places=(("above", 1), ("left", 2))), Wanted("shape", count=2))
    wish = Wish("one", "places", (*things, Wanted("square")), only=True, background="navy")
    assert read_wishes(written(tmp_path, wish.record())) == [wish]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1"),
        ('{"prompt": "a dog"}', "include"),
        ({"prompt": " ", "include": [{"class": "dog"}]}, "needs a prompt"),
        ({"prompt": "dogs", "include": [{"class": "dog", "count": 0}]}, "count 0"),
        ({"prompt": "dogs", "include": [{"class": "dog", "position": ["behind", 0]}]}, "'behind'"),
        ({"prompt": "dogs", "include": [{"class": "dog", "position": ["left of", 3]}]}, "thing 3 of 1"),
        ('["a dog"]', "line 1"),
    ],
)
def test_a_line_that_says_something_else_is_named(tmp_path: Path, line: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_wishes(written(tmp_path, line))


def test_a_file_without_prompts_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no prompt"):
        read_wishes(written(tmp_path, ""))
    with pytest.raises((InputError, OSError)):
        read_wishes(tmp_path / "none.jsonl")
