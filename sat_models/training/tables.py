"""Parquet files, and data sets of the Hugging Face hub, through the package `datasets`: each row is an entry.

    FILE.parquet, or a folder of such        a row has the keys of any style that `entries.py` knows
    hf:OWNER/NAME, hf:OWNER/NAME/CONFIG      the same from the hub, which keeps it in its own cache

Pictures that lie in the rows are written once to `SAT_HOME/data_images`, named by what they hold, so that a run that
goes on finds the same. Rows of object detection hold `objects` with `bbox` [x, y, width, height] and `category`; the
names of the categories stand in the table. Source: huggingface.co/docs/datasets, "Object detection".
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from sat_models.errors import InputError, MissingPackageError
from sat_models.files import whole_file
from sat_models.training.detecting import TABLE
from sat_models.training.entries import parse_entry
from sat_models.training.grounding.annotated import reporting
from sat_models.training.grounding.coco import unknown_name
from sat_models.training.image_names import IMAGE_KEYS
from sat_models.training.reading import Reading
from sat_models.training.records import EntryError, Problem, Record
from sat_models.zoo.locate import sat_home

logger = logging.getLogger(__name__)

HUB = "hf:"
_CATEGORIES = ("category", "categories", "label", "labels", "category_id")
_HELD_OUT = ("val", "validation", "valid", "dev")
"""Names of the split that is validated on."""


def is_hub(path: Path | str) -> bool:
    """Whether a path names a data set of the hub."""
    return str(path).startswith(HUB)


def read_table(path: Path, how: Reading) -> Iterator[Record]:
    """The records of parquet files or of a data set of the hub, row by row."""
    try:
        table = _opened(path, how.split)
        names = _category_names(table.features)
        table = _undecoded(table)
    except InputError as error:
        how.on_problem(Problem(str(path), "fields", str(error)))
        return
    finder = how.finder(path)
    for number in range(len(table)):
        source = f"{path}:{number + 1}"
        with reporting(source, how.on_problem):
            entry = _entry(table[number], names)
            yield from parse_entry(entry, source, finder, prompt=how.prompt, asking=how.asking)


def _opened(path: Path, split: str) -> Any:
    """The table. Raises InputError, and MissingPackageError without `datasets`."""
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError("datasets", "data", f"reading {path}") from error
    try:
        if not is_hub(path):
            files = sorted(path.rglob(f"*{TABLE}")) if path.is_dir() else [path]
            return datasets.load_dataset("parquet", data_files=list(map(str, files)), split="train")
        owner, name, *config = str(path).removeprefix(HUB).split("/")
        parts = datasets.load_dataset(f"{owner}/{name}", *config)
        wanted = _HELD_OUT if split == "val" else (split,)
        found = next((parts[part] for part in wanted if part in parts), None)
    except Exception as error:  # what the package raises is of many kinds
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"'{path}' cannot be read ({said[:200]}). Check the file or the name, or get it again."
        ) from error
    if found is None:
        raise InputError(f"'{path}' has no split '{split}', only {', '.join(map(str, parts))}. Export one as parquet.")
    return found


def _category_names(features: Mapping[str, Any]) -> dict[str, str]:
    """Names of the categories by number, where the table has them."""
    objects = features.get("objects")
    objects = getattr(objects, "feature", objects)
    own = objects if isinstance(objects, Mapping) else {}
    for key in _CATEGORIES:
        label = getattr(own.get(key), "feature", own.get(key))
        if listed := getattr(label, "names", None):
            return {str(number): name for number, name in enumerate(listed)}
    return {}


def _undecoded(table: Any) -> Any:
    """The table with pictures as they are stored."""
    import datasets

    for key in IMAGE_KEYS:
        feature = table.features.get(key)
        if isinstance(feature, datasets.Image):
            table = table.cast_column(key, datasets.Image(decode=False))
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            table = table.cast_column(key, datasets.List(datasets.Image(decode=False)))
    return table


def _entry(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A row with pictures by their names, and boxes of detection as names and corners. Raises EntryError."""
    entry = {key: _named(value) if key in IMAGE_KEYS else value for key, value in row.items() if value is not None}
    objects = entry.get("objects")
    if isinstance(objects, list) and objects and all(isinstance(one, Mapping) for one in objects):
        objects = {key: [one.get(key) for one in objects] for key in objects[0]}
    key = next((key for key in _CATEGORIES if isinstance(objects, Mapping) and objects.get(key) is not None), None)
    if key is not None and "ref" not in objects:
        entry["objects"] = _corners(objects, key, dict(names))
    return entry


def _corners(objects: Mapping[str, Any], key: str, names: dict[str, str]) -> dict[str, Any]:
    """Categories and [x, y, width, height] as names and corners. Raises EntryError."""
    called, boxes = [], []
    for category, box in zip(objects[key], objects.get("bbox") or [], strict=False):
        if not isinstance(category, str) and str(category) not in names:
            raise EntryError("boxes", unknown_name(key, str(category), names))
        called.append(category if isinstance(category, str) else names[str(category)])
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
            raise EntryError("boxes", f"'bbox' has {box!a:.60}; it must be x, y, width, height")
        boxes.append([box[0], box[1], box[0] + box[2], box[1] + box[3]])
    if len(called) != len(objects[key]) or len(boxes) != len(objects.get("bbox") or []):
        raise EntryError("boxes", f"'objects' has {len(objects[key])} {key} for {len(objects.get('bbox') or [])} boxes")
    return {"ref": called, "bbox": boxes}


def _named(value: Any) -> Any:
    """Pictures by their names: those that are stored in the table are written to files first."""
    if isinstance(value, list):
        return [_named(one) for one in value]
    if isinstance(value, bytes):
        return str(_kept(value))
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return str(_kept(value["bytes"]))
    return value.get("path") if isinstance(value, Mapping) else value


def _kept(data: bytes) -> Path:
    """The file of a picture, written where it is not there. Raises EntryError."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            suffix = (opened.format or "img").lower()
    except Exception as error:  # damaged pictures raise anything
        raise EntryError("image", f"the picture in the row cannot be read ({str(error)[:100]})") from error
    place = sat_home() / "data_images" / f"{hashlib.sha256(data).hexdigest()}.{suffix}"
    try:
        if not place.is_file() or place.stat().st_size != len(data):
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place) as draft:
                draft.write_bytes(data)
    except OSError as error:
        raise InputError(
            f"'{place}' cannot be written ({error.strerror or error}). Set SAT_HOME to a place."
        ) from error
    return place
