"""Any JSON at all, and annotations with any value in any place, are records or problems, never a traceback."""

from __future__ import annotations

import copy
import json
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sat_models.processing.box_forms import BOX_FORMS as FAMILY_FORMS
from sat_models.processing.prompts import BASE
from sat_models.shapes.box_forms import BOX_FORMS, IMAGES, BoxedImage
from sat_models.training.formats import read_records
from sat_models.training.records import Problem

SIZE = (40, 25)
IMAGE = BoxedImage(1, SIZE, (("dog", (4.0, 2.0, 12.0, 12.0)), ("cat", (20.0, 10.0, 40.0, 25.0))))
FORMS = {
    "coco": "coco", "refcoco": "refcoco", "visual-genome": "visual-genome", "labelme": "labelme",
    "label-studio": "label-studio", "objects": "json", "swift": "json",
}  # fmt: skip
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
        st.sampled_from(["<image>", "<bbox>", "<|box|>", "\ud83d", "dog", "1.png", "images/1.png", 10**400, -1, 1]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / IMAGES).mkdir()
        Image.new("RGB", SIZE).save(Path(name) / IMAGES / "1.png")
        yield Path(name)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*at, key))


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    value = copy.copy(value)
    value[at[0]] = changed(value[at[0]], at[1:], new)
    return value


def check(path: Path, form: str) -> None:
    """Everything is read or told, and what is read can be written in every family's form."""
    problems: list[Problem] = []
    try:
        records = read_records(path, format=FORMS[form], on_problem=problems.append)
    except Exception as error:
        assert type(error).__module__.startswith("sat_models"), error
        return
    for problem in problems:
        str(problem).encode()
        assert len(problem.message) < 2000
    for record in records:
        for family in FAMILY_FORMS.values():
            for turn in record.said(BASE, family)[0]:
                "".join(turn).encode()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(FORMS)), st.data())
def test_any_value_in_any_place(folder: Path, form: str, data: st.DataObject) -> None:
    path = BOX_FORMS[form](folder, [IMAGE])
    if path.is_dir():
        path = path / "1.json"
    pickled = path.suffix == ".p"
    text = "" if pickled else path.read_text()
    content = pickle.loads(path.read_bytes()) if pickled else [json.loads(line) for line in text.splitlines()]
    where = data.draw(st.sampled_from(list(places(content))[1:]))
    content = changed(content, where, data.draw(VALUES))
    if pickled:
        path.write_bytes(pickle.dumps(content))
    else:
        lines = [json.dumps(line) for line in content]
        path.write_text("\n".join(lines) + "\n")
    check(path, form)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(set(FORMS) - {"refcoco"})), VALUES)
def test_any_json_at_all(folder: Path, form: str, value: Any) -> None:
    path = folder / "any.json"
    path.write_text(json.dumps(value))
    check(path, form)


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=40),
        st.text(alphabet="0123456789. -\nex", max_size=40).map(str.encode),
    ),
    st.one_of(
        st.text(max_size=20), st.sampled_from(["names: [dog]\ntrain: images", "names: {0: dog}\ntrain: 7", "[a"])
    ),
)
def test_any_labels_of_yolo(folder: Path, label: bytes, yaml: str) -> None:
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / "1.txt").write_bytes(label)
    (folder / "data.yaml").write_text(yaml, encoding="utf-8", errors="replace")
    FORMS["yolo"] = "yolo"
    try:
        check(folder / "data.yaml", "yolo")
    finally:
        del FORMS["yolo"]
