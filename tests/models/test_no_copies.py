"""No model's file is a copy of another's."""

from __future__ import annotations

import itertools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("sat_models/models", "sat_models/vision", "sat_models/config")
LONGEST = 9


def longest_run(one: list[str], other: list[str]) -> int:
    """Length of the longest run of lines that both have."""
    longest, before = 0, [0] * (len(other) + 1)
    for line in one:
        row = [0, *(before[at] + 1 if line == there else 0 for at, there in enumerate(other))]
        longest, before = max(longest, *row), row
    return longest


def lines_of(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def test_the_longest_repeated_run_is_short() -> None:
    files = {path: lines_of(path) for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}
    assert len(files) > 20
    runs = {
        (str(one), str(other)): longest_run(files[one], files[other]) for one, other in itertools.combinations(files, 2)
    }
    assert {pair: run for pair, run in runs.items() if run > LONGEST} == {}


def test_a_copy_would_be_found() -> None:
    lines = [f"line {number}" for number in range(LONGEST + 1)]
    assert longest_run(["a", *lines, "b"], ["c", "d", *lines]) == LONGEST + 1
