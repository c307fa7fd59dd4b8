"""JSON of people: keys that come twice, other encodings, packed files."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from data_helpers import image_file

from sat_models.errors import InputError
from sat_models.training.formats import read_records
from sat_models.training.records import Problem

LINE = {"prompt": "Kühe?", "text": "Ja.", "image": "1.png"}


def problems_of(path: Path) -> list[Problem]:
    found: list[Problem] = []
    read_records(path, on_problem=found.append)
    return found


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_are_read(name: str, encoding: str, tmp_path: Path) -> None:
    image_file(tmp_path / "1.png")
    lines = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in (LINE, LINE))
    (tmp_path / name).write_bytes(lines.encode(encoding))
    first, second = read_records(tmp_path / name)
    assert first.turns == (("Kühe?", "Ja."),) and second.source == f"{tmp_path / name}:2"


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("Kühe".encode("utf-16") + b"\x00", "is not utf-16.* as its mark says"),
        (json.dumps(LINE, ensure_ascii=False).encode("utf-16-le"), "is not (JSON|UTF-8)"),
        (json.dumps(LINE, ensure_ascii=False).encode("latin-1"), "is not UTF-8"),
    ],
)
def test_what_cannot_be_decoded_is_a_bad_sample(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(data)
    problems = problems_of(tmp_path / "x.jsonl")
    assert problems and problems[0].source.endswith("x.jsonl:1")
    assert re.search(said, problems[0].message)


def test_packed_files_are_named(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.json"):
        (tmp_path / name).write_bytes(gzip.compress(json.dumps(LINE).encode()))
        with pytest.raises(InputError, match=rf"{name}' is packed \(gzip\) and read as it lies; unpack it"):
            read_records(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ('{"prompt": "a", "text": "b", "image": "1.png", "text": "c"}', "text"),
        ('{"image": "1.png", "messages": [{"role": "user", "role": "assistant", "content": "a"}]}', "role"),
        ('{"prompt": "a", "text": "b", "image": "1.png", "meta": {"\\ud83d": 1, "\\ud83d": 2}}', r"\ud83d"),
    ],
)
def test_a_key_that_comes_twice_is_named(content: str, key: str, tmp_path: Path) -> None:
    image_file(tmp_path / "1.png")
    for name, text in (("x.jsonl", content), ("one.json", content), ("list.json", f"[{content}]")):
        (tmp_path / name).write_text(text)
        (problem,) = problems_of(tmp_path / name)
        assert f"an object has the key '{key}' twice" in problem.message and problem.source.endswith(f"{name}:1")
