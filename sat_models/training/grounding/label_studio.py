"""Label Studio's JSON and JSON-MIN exports: a list of tasks, with regions in per cent of the image's sides.

A rectangle turns clockwise around its top left corner by `rotation` degrees, in pixels and not in per cent; of turned
rectangles, ellipses and polygons the bounding box counts. Results of one `id` are one region: one says where it is,
others its label or a text about it, by which it is called then. `completions` is the former name of `annotations`.
Source: labelstud.io/guide/export, /guide/task_format and /tags/rectanglelabels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from sat_models.errors import InputError
from sat_models.evaluation.entry import Entry, entries_of
from sat_models.evaluation.samples import read_json
from sat_models.processing.box_forms import Corners
from sat_models.training.grounding.annotated import Annotated, check_size, reporting, size_of
from sat_models.training.grounding.labelme import bounds
from sat_models.training.grounding.samples import records_of
from sat_models.training.reading import Reading, image_folders
from sat_models.training.records import EntryError, ImageFile, Problem, Record

LABELS = ("rectanglelabels", "polygonlabels", "ellipselabels", "labels")
MASKS = ("rle", "brushlabels", "bitmasklabels", "vectorlabels")
POINTS = ("keypointlabels", "keypoint")
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
"""Put before the name of a file that was uploaded."""
_IMAGE = re.compile(r"\.(jpe?g|png|webp|bmp|gif|tiff?)(\?|$)|\?d=", re.I)


def read_label_studio(path: Path, how: Reading) -> Iterator[Record]:
    """The records of an export, task by task."""
    try:
        tasks = entries_of(read_json(path), f"'{path}', .")
    except InputError as error:
        how.on_problem(Problem(str(path), "fields", str(error)))
        return
    regions: list[list[list[Entry]] | None] = []
    for task in tasks:
        regions.append(None)
        with reporting(_place(task, path), how.on_problem):
            regions[-1] = _regions(task)
    known = sorted({name for own in regions for results in own or () for name in _labels(results)})
    for task, own in zip(tasks, regions, strict=True):
        place = _place(task, path)
        with reporting(place, how.on_problem):
            if own is None:
                continue
            image = _image(task, path, how)
            found = Annotated(image, size_of(image), place, known=known)
            for number, results in enumerate(own, 1):
                with found.reporting(f"{place}, region {number}", how.on_problem):
                    _add(found, results)
            yield from records_of(found, how.asking)


def _regions(task: Entry) -> list[list[Entry]] | None:
    """The results of each region of a task, in either export; None for a task that nobody has finished.

    Of several annotations of a task the one marked as ground truth counts, else the first that was submitted.
    """
    if "data" not in task:
        lists = [key for key, value in task.fields.items() if _are_regions(value)]
        return [[Entry({"value": one.fields, **one.fields}, one.place)] for key in lists for one in task.entries(key)]
    kept = task.entries("annotations" if "annotations" in task else "completions")
    kept = [one for one in kept if not one.fields.get("was_cancelled") and not one.fields.get("skipped")]
    chosen = [one for one in kept if one.fields.get("ground_truth")][:1] or kept[:1]
    by_id: dict[Any, list[Entry]] = {}
    for annotation in chosen:
        for number, result in enumerate(annotation.entries("result")):
            own = result.fields.get("id")
            by_id.setdefault(own if isinstance(own, str) else number, []).append(result)
    return list(by_id.values()) if chosen else None


def _are_regions(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and "original_width" in one for one in value)
    )


def _values(results: Sequence[Entry]) -> list[dict[str, Any]]:
    values = [result.fields.get("value") for result in results]
    return [value for value in values if isinstance(value, dict)]


def _labels(results: Sequence[Entry]) -> list[str]:
    """The labels of a region."""
    found = [value[key] for value in _values(results) for key in LABELS if key in value]
    names = [name for names in found if isinstance(names, list) for name in names if isinstance(name, str)]
    return list(dict.fromkeys(names))


def _texts(results: Sequence[Entry]) -> list[str]:
    """The texts about a region."""
    told = [result for result in results if result.fields.get("type") == "textarea"]
    found = [value.get("text") for value in _values(told)]
    texts = [text for given in found for text in (given if isinstance(given, list) else [given])]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _add(found: Annotated, results: Sequence[Entry]) -> None:
    """One region, under each of its names. Raises EntryError, InputError."""
    if any(not isinstance(result.fields.get("value"), dict) for result in results):
        raise EntryError("fields", "a result has no 'value'; export the tasks again")
    keys = {key for value in _values(results) for key in value} | {str(r.fields.get("type")) for r in results}
    if keys & set(MASKS):
        raise EntryError("boxes", "the region is painted (a mask), which has no box; draw a rectangle around it")
    where = next((r for r, v in zip(results, _values(results), strict=True) if {"x", "points"} & v.keys()), None)
    if where is None or keys & set(POINTS):
        return  # about the whole image, or a point
    names = _texts(results) or _labels(results)
    if not names:
        raise EntryError("boxes", "the region has no label; give it one in Label Studio")
    if where.fields.get("image_rotation"):
        raise EntryError(
            "boxes",
            f"the picture was turned by {where.fields['image_rotation']} degrees when it was annotated; turn it back "
            "in Label Studio, or annotate a picture that is stored upright",
        )
    size = (where.number("original_width"), where.number("original_height"))
    check_size(size, found.size)
    corners = _corners(Entry(where.value("value"), where.place), size)
    for name in names:
        found.add(name, corners)


def _corners(value: Entry, size: tuple[float, float]) -> Corners:
    """The bounding box of a region in pixels. Raises EntryError, InputError."""
    width, height = size[0] / 100, size[1] / 100
    if "points" in value:
        pairs = [Entry(dict(enumerate(p)) if isinstance(p, list) else {}, value.place) for p in value.items("points")]
        if len(pairs) < 3:
            raise EntryError("boxes", f"the polygon has {len(pairs)} points; it must have at least three")
        return bounds([(pair.number(0) * width, pair.number(1) * height) for pair in pairs])
    x, y = value.number("x") * width, value.number("y") * height
    turn = math.radians(value.number("rotation") if value.fields.get("rotation") else 0.0)
    cos, sin = math.cos(turn), math.sin(turn)
    if "radiusX" in value:
        across, down = value.number("radiusX") * width, value.number("radiusY") * height
        reach_x, reach_y = math.hypot(across * cos, down * sin), math.hypot(across * sin, down * cos)
        return x - reach_x, y - reach_y, x + reach_x, y + reach_y
    across, down = value.number("width") * width, value.number("height") * height
    sides = [(0.0, 0.0), (across, 0.0), (0.0, down), (across, down)]
    return bounds([(x + a * cos - d * sin, y + a * sin + d * cos) for a, d in sides])


def _image(task: Entry, path: Path, how: Reading) -> ImageFile:
    """The picture that a task names, found on disk by what was uploaded or served. Raises EntryError."""
    fields = task.fields["data"] if "data" in task else task.fields
    texts = {key: value for key, value in fields.items() if isinstance(value, str)} if isinstance(fields, dict) else {}
    given = texts.get("image") or next((text for text in texts.values() if _IMAGE.search(text)), None)
    if not given:
        raise EntryError("image", f"the task names no picture: its data are {fields!a:.60}")
    finder, names = how.finder(path, list(image_folders(path))), list(dict.fromkeys(_names(given)))
    for name in names[:-1]:
        try:
            return finder.find(name)
        except EntryError:
            continue
    return finder.find(names[-1])


def _names(given: str) -> Iterator[str]:
    """What a picture of an export may be called on disk."""
    parts = urlsplit(given)
    path = unquote(parts.path)
    if local := parse_qs(parts.query).get("d"):
        yield from (local[0], local[0].rpartition("/")[2])  # /data/local-files/?d=folder/a.jpg
        return
    upload = path.partition("/upload/")[2]  # /data/upload/3/5f2a9c1e-a.jpg
    if parts.scheme in ("http", "https", "data") and not upload:
        yield given
        return
    yield path.lstrip("/") if parts.scheme else given  # s3://bucket/folder/a.jpg
    base = path.rpartition("/")[2]
    yield from (upload or base, base, _UPLOAD.sub("", base))


def _place(task: Entry, path: Path) -> str:
    """Where a task stands: `file, .[3]`."""
    return task.place.replace(f"'{path}'", str(path))
