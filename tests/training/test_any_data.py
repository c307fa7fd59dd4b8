"""Any JSON at all as training data: a record that means what it says, or a problem with its line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_helpers import image_file, processor
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_models.training.data import VLMDataset
from sat_models.training.entry_keys import UNREAD
from sat_models.training.formats import read_records
from sat_models.training.marks import SLOT
from sat_models.training.records import Problem, Record

TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(categories=("Cs", "L", "Zl", "Zp", "Cc")), max_size=8),
    st.sampled_from(["", " ", "What?", "<image>", "<image>\nWhat?", "<img>1.png</img>", "[IMG]", "<video>", "1.png"]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
ROLES = st.sampled_from(["user", "assistant", "human", "gpt", "system", "tool"])
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": ROLES, "content": st.one_of(TEXTS, VALUES)},
        optional={"loss": st.sampled_from([True, False, None, 0, 1, 2]), "weight": VALUES},
    ),
    max_size=4,
)
ENTRIES = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {"prompt": TEXTS, "text": TEXTS},
        optional={
            "image": st.one_of(st.just("1.png"), VALUES),
            "history": st.one_of(st.lists(st.lists(TEXTS, min_size=2, max_size=2), max_size=2), VALUES),
            "system": st.one_of(TEXTS, VALUES),
            "objects": VALUES,
            "tools": VALUES,
            "id": VALUES,
        },
    ),
    st.fixed_dictionaries({"messages": MESSAGES}, optional={"image": st.one_of(st.just("1.png"), VALUES)}),
    st.fixed_dictionaries({"conversations": MESSAGES, "system": TEXTS}),
)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        image_file(Path(name, "1.png"))
        yield Path(name)


def read(folder: Path, entries: list[Any], *, escaped: bool) -> tuple[list[Record], list[Problem]]:
    lines = [json.dumps(entry, ensure_ascii=escaped) for entry in entries]
    path = folder / "x.jsonl"
    path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"))
    problems: list[Problem] = []
    return read_records(path, on_problem=problems.append), problems


@settings(max_examples=300, deadline=None)
@given(st.lists(ENTRIES, min_size=1, max_size=4), st.booleans())
def test_any_entries_are_records_or_problems_by_line(folder: Path, entries: list[Any], escaped: bool) -> None:
    records, problems = read(folder, entries, escaped=escaped)
    lines = [int(one.source.rpartition(":")[2]) for one in (*records, *problems)]
    assert sorted(lines) == list(range(1, len(entries) + 1)), "each line is one or the other, wherever its text breaks"
    for problem in problems:
        str(problem).encode()
        assert "\n" not in problem.source and len(problem.message) < 2000
    for record in records:
        number = int(record.source.rpartition(":")[2])
        for turn in record.turns:
            "".join(turn).encode()
            assert turn[1].strip() and SLOT not in turn[0]
        assert len(record.turns) - 1 not in record.untrained
        entry = entries[number - 1]
        assert not any(entry.get(key) not in (None, False, "", "[]", "{}", "null", [], {}) for key in UNREAD)


@settings(max_examples=60, deadline=None)
@given(st.lists(ENTRIES, min_size=1, max_size=3))
def test_every_record_can_be_trained_on(folder: Path, entries: list[Any]) -> None:
    records, _ = read(folder, entries, escaped=True)
    for record in records:
        (sample,) = [VLMDataset([record], processor(), version="chat", max_length=4096)[0]]
        assert int((sample.labels >= 0).sum()) > 0
