"""LabelMe: a JSON file per image with `shapes`, `imagePath`, `imageWidth` and `imageHeight`.

A rectangle has any two opposite corners (X-AnyLabeling: all four), a circle its middle and a point of its edge; of
other outlines the bounding box counts. Points and lines have no box and are passed over, with a word in the log.
Source: github.com/wkentaro/labelme, `labelme/label_file.py` and `examples/primitives`.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sat_models.evaluation.entry import Entry, read_entry
from sat_models.processing.box_forms import Corners
from sat_models.training.grounding.annotated import Annotated, check_size, reporting, size_of
from sat_models.training.grounding.samples import records_of
from sat_models.training.reading import Reading, image_folders
from sat_models.training.records import EntryError, ImageFile, Record

logger = logging.getLogger(__name__)

OUTLINES = ("polygon", "rectangle", "rotation", "oriented_rectangle", "circle", "mask", "cuboid", "quadrilateral")
WITHOUT_BOX = ("point", "points", "line", "linestrip")


def read_labelme(path: Path, how: Reading) -> Iterator[Record]:
    """The records of one file, or of all files of a folder."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*.json") if not file.name.startswith("."))
    entries: dict[Path, Entry] = {}
    for file in files:
        with reporting(str(file), how.on_problem):
            entries[file] = read_entry(file)
    known = sorted({str(shape.get("label")) for entry in entries.values() for shape in _shapes(entry)})
    passed: Counter[str] = Counter()
    for file, entry in entries.items():
        with reporting(str(file), how.on_problem):
            image = _image(entry, file, how)
            found = Annotated(image, size_of(image), str(file), known=known)
            sides = [entry.fields.get(key) for key in ("imageWidth", "imageHeight")]
            if all(sides):
                check_size([entry.number(key) for key in ("imageWidth", "imageHeight")], found.size)
            for number, shape in enumerate(entry.entries("shapes")):
                with found.reporting(f"{file}, .shapes[{number}]", how.on_problem):
                    kind = shape.optional("shape_type") or "polygon"
                    if kind in WITHOUT_BOX:
                        passed[kind] += 1
                    else:
                        found.add(shape.text("label"), _corners(shape, kind))
            yield from records_of(found, how.asking)
    if passed:
        said = ", ".join(f"{count} {kind}" for kind, count in passed.items())
        logger.warning("%s: shapes without a box are passed over: %s", path, said)


def _shapes(entry: Entry) -> list[dict]:
    shapes = entry.fields.get("shapes")
    return [shape for shape in shapes if isinstance(shape, dict)] if isinstance(shapes, list) else []


def _corners(shape: Entry, kind: str) -> Corners:
    """The bounding box of a shape. Raises EntryError."""
    if kind not in OUTLINES:
        raise EntryError("boxes", f"the shape_type is '{kind:.40}'; known: {', '.join((*OUTLINES, *WITHOUT_BOX))}")
    points = shape.items("points")
    if not points or not all(_is_point(point) for point in points):
        raise EntryError("boxes", f"the points are {points!a:.60}; they must be a list of [x, y] in pixels")
    if kind == "circle":
        if len(points) != 2:
            raise EntryError("boxes", f"a circle has {len(points)} points; it must have its middle and one of its edge")
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return x - radius, y - radius, x + radius, y + radius
    return bounds(points)


def bounds(points: Sequence[Sequence[float]]) -> Corners:
    """The bounding box of points."""
    xs, ys = [point[0] for point in points], [point[1] for point in points]
    return min(xs), min(ys), max(xs), max(ys)


def _is_point(point: object) -> bool:
    return (
        isinstance(point, list)
        and len(point) == 2
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in point)
    )


def _image(entry: Entry, file: Path, how: Reading) -> ImageFile:
    """The picture of a file: `imagePath`, which Windows writes with backslashes; else what `imageData` holds."""
    name = entry.optional("imagePath").replace("\\", "/")
    data = entry.fields.get("imageData")
    try:
        if not name:
            raise EntryError("image", "'imagePath' is empty; it must name the picture")
        return how.finder(file, list(image_folders(file))).find(name)
    except EntryError:
        if not isinstance(data, str) or not data:
            raise
    return f"data:image/png;base64,{data}"
