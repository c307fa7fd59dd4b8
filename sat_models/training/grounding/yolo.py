"""YOLO: a text file per image with `class x_center y_center width height`, all but the class as shares of the sides.

    data.yaml         `path`, `train`, `val` (folders, or text files that list images), `names`
    images/…/a.jpg    labels/…/a.txt belongs to it; else a.txt beside it, as Darknet and LabelImg have it
    classes.txt       or obj.names: the names, where there is no data.yaml

A row with more coordinates is an outline (segments, oriented boxes): its bounding box counts. An image without a label
file, or with an empty one, has no objects. Source: docs.ultralytics.com/datasets/detect, /segment, /obb and /pose.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sat_models.errors import InputError
from sat_models.evaluation.samples import read_text
from sat_models.processing.box_forms import Corners
from sat_models.training.grounding.annotated import Annotated, reporting, size_of
from sat_models.training.grounding.coco import unknown_name
from sat_models.training.grounding.samples import records_of
from sat_models.training.image_files import images_in
from sat_models.training.reading import Reading
from sat_models.training.records import EntryError, Problem, Record

logger = logging.getLogger(__name__)

YAML_SUFFIXES = (".yaml", ".yml")
NAME_FILES = ("classes.txt", "obj.names")
_SLACK = 0.01
"""So far may a share be out of 0 to 1 before it is taken for pixels."""


@dataclass(frozen=True)
class _Set:
    """What a data.yaml, or a folder, says.

    Attributes:
        names: by number.
        places: folders, or files that list images.
        points: whether rows go on with key points.
    """

    names: dict[str, str]
    places: tuple[Path, ...]
    points: bool = False


def is_yolo(folder: Path) -> bool:
    """Whether a folder holds a YOLO set: a YAML with `names`, or text labels of images."""
    if any(_names_classes(file) for file in _yamls(folder)):
        return True
    if (folder / "images").is_dir() and (folder / "labels").is_dir():
        return next((folder / "labels").rglob("*.txt"), None) is not None
    return any((folder / name).is_file() for name in NAME_FILES)


def read_yolo(path: Path, how: Reading) -> Iterator[Record]:
    """The records of a data.yaml, or of a folder, image by image."""
    try:
        data = _from_yaml(path, how.split) if path.is_file() else _from_folder(path, how.split)
        images = [image for place in data.places for image in _images_of(place)]
    except InputError as error:
        how.on_problem(Problem(str(path), "fields", str(error)))
        return
    labels = {image: label_of(image) for image in images}
    if images and not any(label for label in labels.values()):
        text = f"none of its {len(images)} pictures has a label file, such as {_labels_like(images[0])}"
        how.on_problem(Problem(str(path), "fields", text))
        return
    bare = [image for image, label in labels.items() if label is None]
    if bare:
        logger.info("%s: %d picture(s) without a label file have no objects, such as %s", path, len(bare), bare[0])
    for image, label in labels.items():
        yield from _of_image(image, label, data, how)
    for label in _without_image(labels):
        how.on_problem(Problem(f"{label}:1", "image", f"no picture {label.stem}.* belongs to it; add it, or remove it"))


def _of_image(image: Path, label: Path | None, data: _Set, how: Reading) -> Iterator[Record]:
    source = str(label or image)
    with reporting(source, how.on_problem):
        found = Annotated(image, size_of(image), source, known=tuple(data.names.values()))
        rows = read_text(label).splitlines() if label else []
        for number, row in enumerate(rows, 1):
            if row.strip():
                with found.reporting(f"{source}:{number}", how.on_problem):
                    name, corners = _row(row.split(), data, found.size)
                    found.add(name, corners)
        yield from records_of(found, how.asking)


def _row(fields: list[str], data: _Set, size: tuple[int, int]) -> tuple[str, Corners]:
    """Name and corners in pixels of a row. Raises EntryError."""
    try:
        values = [float(field) for field in fields[1:]]
    except ValueError:
        values = [math.nan]
    outline = len(values) >= 6 and len(values) % 2 == 0 and not data.points
    if not all(map(math.isfinite, values)) or not (len(values) == 4 or outline or (data.points and len(values) > 4)):
        raise EntryError(
            "boxes",
            f"the row is '{' '.join(fields)[:60]}'; it must be a class and x_center y_center width height (or an "
            "outline of at least three points), all numbers",
        )
    number = fields[0].removesuffix(".0")
    if number not in data.names:
        raise EntryError("boxes", unknown_name("class", fields[0][:20], data.names))
    shares = _bounds(values) if outline else _from_middle(values[:4])
    if min(shares) < -_SLACK or max(shares) > 1 + _SLACK:
        raise EntryError(
            "boxes",
            f"the box of '{data.names[number]}' is {' '.join(fields[1:5])[:50]}; these must be shares of the picture's "
            "sides, from 0 to 1. Divide pixels by width and height",
        )
    clipped = [min(max(share, 0.0), 1.0) for share in shares]
    return data.names[number], tuple(share * side for share, side in zip(clipped, (*size, *size), strict=True))


def _from_middle(values: list[float]) -> Corners:
    x, y, width, height = values
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _bounds(values: list[float]) -> Corners:
    xs, ys = values[::2], values[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def label_of(image: Path) -> Path | None:
    """The label file of an image, if there is one."""
    return next((file for file in (_labels_like(image), image.with_suffix(".txt")) if file.is_file()), None)


def _labels_like(image: Path) -> Path:
    """`labels/…/a.txt` for `images/…/a.jpg`: the last folder of that name counts."""
    parts = list(image.with_suffix(".txt").parts)
    for at in range(len(parts) - 2, -1, -1):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return Path(*parts)


def _without_image(labels: dict[Path, Path | None]) -> list[Path]:
    """Label files beside those that were read, which belong to no image."""
    used = {label for label in labels.values() if label}
    folders = sorted({label.parent for label in used})
    return [f for folder in folders for f in sorted(folder.glob("*.txt")) if f not in used and _is_label(f)]


def _is_label(file: Path) -> bool:
    """Whether a text file looks like labels, and not like a list of names or of images."""
    try:
        row = read_text(file).split("\n")[0].split()
        return file.name not in NAME_FILES and len(row) >= 5 and all(map(math.isfinite, map(float, row)))
    except (InputError, ValueError):
        return False


def _from_yaml(file: Path, split: str) -> _Set:
    """Raises InputError."""
    content = _yaml(file)
    names = _named(content.get("names"), file)
    key = "val" if split == "val" and content.get("val") is None and content.get("valid") else split
    given = content.get("valid" if key == "val" and "val" not in content else key)
    if not given:
        raise InputError(f"'{file}' names no pictures under '{split}'. Add {split}: FOLDER, relative to 'path'.")
    root = Path(str(content.get("path") or "."))
    roots = [file.parent / root, file.parent]  # sets are moved; `path` is often that of another machine
    places = [_place(str(one), roots, file) for one in (given if isinstance(given, list) else [given])]
    return _Set(names, tuple(places), points="kpt_shape" in content)


def _place(given: str, roots: list[Path], file: Path) -> Path:
    """A folder or list of images. Roboflow writes `../train/images` for what lies beside the file."""
    tried = [root / name for name in (given, given.removeprefix("../")) for root in roots]
    found = next((place for place in tried if place.exists()), None)
    if found is None:
        raise InputError(f"'{file}' names the pictures '{given}', which are not there (tried {tried[0]}). Correct it.")
    return found


def _from_folder(folder: Path, split: str) -> _Set:
    """A folder with images and labels; the names stand in it, beside its labels, or one folder up."""
    if found := next((file for file in _yamls(folder) if _names_classes(file)), None):
        return _from_yaml(found, split)
    images = folder / "images" if (folder / "images").is_dir() else folder
    places = ((images / split) if (images / split).is_dir() else images,)
    for near in (folder, folder / "labels", folder.parent):
        for file in _yamls(near):
            if _names_classes(file):
                content = _yaml(file)
                return _Set(_named(content["names"], file), places, points="kpt_shape" in content)
        for file in (near / name for name in NAME_FILES):
            if file.is_file():
                rows = [row.strip() for row in read_text(file).splitlines()]
                return _Set({str(number): row for number, row in enumerate(rows) if row}, places)
    raise InputError(f"'{folder}' has label files, but nothing names their classes. Add data.yaml or classes.txt.")


def _images_of(place: Path) -> list[Path]:
    """The images of a folder, or those that a text file lists."""
    if place.is_dir():
        return list(images_in(place))
    listed = [row.strip() for row in read_text(place).splitlines() if row.strip()]
    images = [place.parent / row for row in listed]  # an absolute path stays as it is
    missing = [image for image in images if not image.is_file()]
    if missing:
        raise InputError(f"'{place}' lists {len(missing)} picture(s) that are not there, the first {missing[0]}.")
    return images


def _yamls(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix in YAML_SUFFIXES) if folder.is_dir() else []


def _names_classes(file: Path) -> bool:
    try:
        return isinstance(_yaml(file).get("names"), list | dict)
    except InputError:
        return False


def _yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        raise InputError(f"'{file}' is no YAML ({str(error).splitlines()[0]}). Correct it.") from error
    if not isinstance(content, dict):
        raise InputError(f"'{file}' is a {type(content).__name__}; a data.yaml holds 'names' and 'train'.")
    return content


def _named(names: Any, file: Path) -> dict[str, str]:
    """Names by number, from a list or from number: name."""
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(pairs, dict) or not pairs or not all(isinstance(name, str | int) for name in pairs.values()):
        raise InputError(f"'{file}': names is {names!a:.60}; it must be a list of texts, or number: text.")
    return {str(number): str(name) for number, name in pairs.items()}
