"""COCO's detection and caption files: one object with `images`, `annotations` and `categories`.

A box is [x, y, width, height] in pixels from the top left corner. An annotation with `iscrowd` 1 is a region of many
that nobody boxed one by one: its category is not asked for on that image. Source: cocodataset.org, "Data format".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sat_models.errors import InputError
from sat_models.evaluation.entry import Entry, read_entry
from sat_models.training.grounding.annotated import Annotated, check_size, reporting, size_of
from sat_models.training.grounding.samples import records_of
from sat_models.training.reading import Reading, image_folders
from sat_models.training.records import EntryError, Problem, Record


def read_coco(path: Path, how: Reading) -> Iterator[Record]:
    """The records of a file, image by image."""
    try:
        data = read_entry(path)
        images = {image.name("id"): image for image in data.entries("images")}
        named = data.entries("categories") if "categories" in data else []
        names = {one.name("id"): one.text("name") for one in named}
        annotations = _by_image(data.entries("annotations"), images, path, how)
    except InputError as error:
        how.on_problem(Problem(str(path), "fields", str(error)))
        return
    finder = how.finder(path, list(image_folders(path)))
    detects = any("bbox" in one for own in annotations.values() for one in own)
    for number, image in images.items():
        own = annotations.get(number, [])
        if not own and not detects:
            continue
        source = f"{path}, image {number}"
        with reporting(source, how.on_problem):
            file = finder.find(image.text("file_name"))
            found = Annotated(file, size_of(file), source, known=tuple(names.values()) if detects else ())
            if "width" in image and "height" in image:
                check_size((image.number("width"), image.number("height")), found.size)
            for annotation in own:
                with found.reporting(_place(annotation, path), how.on_problem):
                    _add(found, annotation, names)
            yield from records_of(found, how.asking)


def _by_image(annotations: list[Entry], images: dict[str, Entry], path: Path, how: Reading) -> dict[str, list[Entry]]:
    """Annotations by the id of their image; those of an image that the file has not are told."""
    by_image: dict[str, list[Entry]] = {}
    for annotation in annotations:
        with reporting(_place(annotation, path), how.on_problem):
            number = annotation.name("image_id")
            if number not in images:
                raise EntryError("image", f"its image_id {number} is none of the {len(images)} 'images' of the file")
            by_image.setdefault(number, []).append(annotation)
    return by_image


def _add(found: Annotated, annotation: Entry, names: dict[str, str]) -> None:
    """One annotation: a caption, or a box of a category."""
    if "caption" in annotation:
        found.add_caption(annotation.text("caption", empty=True))
        return
    category = annotation.name("category_id")
    if category not in names:
        raise EntryError("boxes", unknown_name("category_id", category, names))
    if annotation.fields.get("iscrowd"):
        found.partial.add(names[category])
        return
    found.add(names[category], annotation.box("bbox"))


def unknown_name(what: str, given: str, names: dict[str, str]) -> str:
    """The message about a category that nobody has named."""
    known = ", ".join(f"{number} {name}" for number, name in list(names.items())[:8]) or "none"
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{what} {given} is none of the named categories ({known}{more}); name it, or correct the annotation"


def _place(annotation: Entry, path: Path) -> str:
    """Where it stands: `file, .annotations[3]`."""
    return annotation.place.replace(f"'{path}'", str(path))
