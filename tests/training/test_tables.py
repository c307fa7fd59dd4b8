"""Parquet files and data sets of the hub as training data. Nothing here reaches the network."""

from __future__ import annotations

import builtins
import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from data_helpers import processor
from datasets import ClassLabel, Dataset, Features, List, Value
from PIL import Image

from sat_models.errors import MissingPackageError
from sat_models.processing.prompts import BASE
from sat_models.training.data import VLMDataset
from sat_models.training.formats import detect_format, read_records
from sat_models.training.grounding.asking import Asking
from sat_models.training.records import Problem, Record
from sat_models.training.resuming import data_digest, images_digest

SIZE = (400, 250)
REC = Asking(shares={"rec": 1.0})
DETECTION = {
    "image": datasets.Image(),
    "objects": {"bbox": List(List(Value("float32"))), "category": List(ClassLabel(names=["cat", "dog"]))},
}


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches in a folder of the test's own, and no hub."""
    monkeypatch.setenv("SAT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def picture(colour: str = "white", kind: str = "PNG") -> dict[str, Any]:
    data = io.BytesIO()
    Image.new("RGB", SIZE, colour).save(data, kind)
    return {"bytes": data.getvalue(), "path": "a.png"}


def table(place: Path, columns: dict[str, list[Any]], features: dict[str, Any] | None = None) -> Path:
    Dataset.from_dict(columns, features=Features(features) if features else None).to_parquet(str(place))
    return place


def read(path: Path, **options: Any) -> tuple[list[Record], list[Problem]]:
    problems: list[Problem] = []
    return read_records(path, on_problem=problems.append, **options), problems


def said(records: list[Record]) -> list[tuple[str, str]]:
    return [record.said(BASE)[0][0] for record in records]


def test_rows_of_dialogues_with_their_pictures(tmp_path: Path) -> None:
    message = {"role": Value("string"), "content": Value("string")}
    turns = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A dog."}]
    columns = {"images": [[picture()], [picture("red", "JPEG")]], "messages": [turns, turns]}
    path = table(tmp_path / "x.parquet", columns, {"images": List(datasets.Image()), "messages": List(message)})
    assert detect_format(path)[0] == detect_format(tmp_path)[0] == "table"
    records, problems = read(path)
    assert not problems and [record.source for record in records] == [f"{path}:1", f"{path}:2"]
    assert [record.images[0].suffix for record in records] == [".png", ".jpeg"]
    assert records[0].turns == (("What?", "A dog."),) and len(VLMDataset(records, processor())) == 2
    again, _ = read(path)
    assert data_digest(again) == data_digest(records) and images_digest(again) == images_digest(records)


def test_rows_of_detection_are_asked_about(tmp_path: Path) -> None:
    objects = [{"bbox": [[40, 25, 80, 100], [200, 100, 200, 150]], "category": [1, 0]}]
    path = table(tmp_path / "x.parquet", {"image": [picture()], "objects": objects}, DETECTION)
    records, problems = read(path, asking=REC)
    assert not problems and said(records) == [
        ("Where is dog? answer in [[x0,y0,x1,y1]] format.", "[[100,100,300,500]]"),
        ("Where is cat? answer in [[x0,y0,x1,y1]] format.", "[[500,400,999,999]]"),
    ]
    one_by_one = [[{"bbox": [40.0, 25.0, 80.0, 100.0], "label": "dog"}]]
    records, problems = read(table(tmp_path / "y.parquet", {"image": [picture()], "objects": one_by_one}), asking=REC)
    assert not problems and said(records)[0][1] == "[[100,100,300,500]]"


def test_rows_with_bare_bytes_and_swift_s_objects(tmp_path: Path) -> None:
    columns = {
        "image": [picture()["bytes"]],
        "query": ["Find <ref-object>"],
        "response": ["<bbox>"],
        "objects": [{"ref": ["dog"], "bbox": [[40.0, 25.0, 120.0, 125.0]]}],
    }
    records, problems = read(table(tmp_path / "x.parquet", columns))
    assert not problems and said(records) == [("Find dog", "[[100,100,300,500]]")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"objects": [{"bbox": [[40.0, 25.0, 80.0, 100.0]], "category": [7]}]}, "category 7 is none of the named"),
        ({"objects": [{"bbox": [[40.0, 25.0, 80.0]], "category": ["dog"]}]}, "it must be x, y, width, height"),
        ({"objects": [{"bbox": [[40.0, 25.0, 80.0, 1.0]], "category": ["dog", "cat"]}]}, "2 category for 1 boxes"),
        ({"objects": [{"bbox": [[40.0, 25.0, 480.0, 1.0]], "category": ["dog"]}]}, "it must lie inside"),
        ({"caption": ["A dog."]}, "has no 'prompt' (or 'question')"),
    ],
)
def test_faults_of_rows_have_their_number(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"image": [picture()], **columns})
    records, (problem,) = read(path)
    assert not records and message in problem.message and problem.source == f"{path}:1"
    damaged = table(tmp_path / "y.parquet", {"image": [b"no picture"], "prompt": ["?"], "text": ["A dog."]})
    assert "the picture in the row cannot be read" in read(damaged)[1][0].message


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"nope")
    (problem,) = read(tmp_path / "x.parquet")[1]
    assert "x.parquet' cannot be read (" in problem.message


def test_a_data_set_of_the_hub_by_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*names: str) -> Any:
        asked.append(names)
        if names[0] == "me/none":
            raise FileNotFoundError("Dataset 'me/none' doesn't exist on the Hub\nor cannot be accessed.")
        row = {"image": [picture()], "prompt": ["What?"]}
        return {part: Dataset.from_dict({**row, "text": [f"A {part}."]}) for part in ("train", "validation")}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert detect_format("hf:me/dogs") == ("table", Path("hf:me/dogs"))
    assert [read_records("hf:me/dogs", split=part)[0].turns[0][1] for part in ("train", "val")] == [
        "A train.",
        "A validation.",
    ]
    assert read_records("hf:me/dogs/small")[0].source == "hf:me/dogs/small:1"
    assert asked == [("me/dogs",), ("me/dogs",), ("me/dogs", "small")]
    (problem,) = read("hf:me/none")[1]
    assert "'hf:me/none' cannot be read (Dataset 'me/none' doesn't exist on the Hub). Check" in problem.message


def test_without_the_package_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "x.parquet", {"prompt": ["?"], "text": ["A dog."]})
    real = builtins.__import__

    def absent(name: str, *rest: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingPackageError, match=r"cogvlm-sat-zoo\[data\]"):
        read_records(path)
