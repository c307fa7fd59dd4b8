"""Annotations of one object per line, and files that are packed, of other encodings or with a key twice."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sat_models.errors import ConfigError, InputError
from sat_models.evaluation.readers import read_samples


def expression(**changes: Any) -> dict[str, Any]:
    """A line as Qwen-VL's files have it; its box is x1, y1, x2, y2."""
    line = {"image": "data/coco/train2014/m.jpg", "sent": "left man", "bbox": [300.5, 20.0, 330, 60.25]}
    return line | {"height": 480, "width": 640} | changes


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["refcoco_testA.jsonl", "refcoco+_val.json"])
def test_refcoco_as_lines(name: str, tmp_path: Path) -> None:
    below = tmp_path / "data/coco/train2014/n.jpg"
    below.parent.mkdir(parents=True)
    Image.new("RGB", (640, 480)).save(below)
    path = written(tmp_path / name, expression(), expression(image="data/coco/train2014/n.jpg", sent="dog"))
    first, second = read_samples("rec", path, tmp_path)
    assert (first.id, first.words, first.references) == ("1", {"expression": "left man"}, ("left man",))
    assert first.boxes == ((300.5, 20, 330, 60.25),)
    assert (first.image, second.image) == (tmp_path / "m.jpg", below)
    with pytest.raises(ConfigError, match="--split is not read"):
        read_samples("rec", path, tmp_path, split="testA")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            expression(bbox=[300, 20, 30, 40]),
            r"'bbox' is \[300, 20, 30, 40\]; it must be x1, y1, x2, y2 inside",
        ),
        (expression(bbox=[0.1, 0.2, 0.3]), "'bbox' is .*must be x1, y1, x2, y2"),
        (expression(bbox=[1, 2, 3, 999]), "'bbox' is .* inside of 640 x 480 px"),
        (expression(bbox=[1, 2, None, 9]), "'bbox' is null; it must be a finite number"),
        (expression(bbox="1,2,3,4"), "'bbox' is '1,2,3,4'; it must be a list"),
        (expression(sent=""), "'sent' is ''; it must be text"),
        ({"sent": "man", "bbox": [1, 2, 3, 4]}, "'image' is missing"),
    ],
)
def test_bad_lines_of_refcoco_are_named(line: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "refcoco.jsonl", expression(), line)
    with pytest.raises(InputError, match=f"line 2 of '.*refcoco.jsonl'.*{said}"):
        read_samples("rec", path, tmp_path)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_files_are_named(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    content = {"captions.json": b"{}", "pope.jsonl": b'{"label": "yes"}', "refs(unc).p": pickle.dumps([])}
    for (name, data), task in zip(content.items(), ("caption", "vqa", "rec"), strict=True):
        (tmp_path / name).write_bytes(pack(data))
        with pytest.raises(InputError, match=r"is packed \((gzip|bzip2|xz)\) and read as it lies; unpack it"):
            read_samples(task, tmp_path / name, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_of_lines(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "pope.jsonl"
    line = {"question_id": 1, "image": "Kühe.png", "text": "Kühe?", "label": "yes"}
    path.write_bytes(json.dumps(line, ensure_ascii=False).encode(encoding))
    (sample,) = read_samples("vqa", path, tmp_path)
    assert (sample.image.name, sample.words) == ("Kühe.png", {"question": "Kühe?"})


def test_a_key_that_comes_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "pope.jsonl"
    path.write_text('{"question_id": 1, "image": "a.png", "text": "Is it?", "label": "yes", "label": "no"}')
    with pytest.raises(InputError, match=r"line 1 of '.*': an object has the key 'label' twice\. Keep one"):
        read_samples("vqa", path, tmp_path)
    path = tmp_path / "captions.json"
    path.write_text('{"images": [{"id": 1, "id": 2, "file_name": "a.png"}], "annotations": []}')
    with pytest.raises(InputError, match=r"captions\.json': an object has the key 'id' twice"):
        read_samples("caption", path, tmp_path)
