"""ms-swift's `objects`: names and boxes beside the texts, whose `<ref-object>` and `<bbox>` say where they stand.

    {"messages": […"Find <ref-object>"…"<bbox><bbox>"…], "objects": {"ref": ["sheep"], "bbox": [[…], […]]}}

`bbox` holds corners (x0, y0, x1, y1); `bbox_type` says of what: "real" (pixels, the default), "norm1" or "norm1000";
`image_id` which picture each is of, from 0. Version 2 wrote a list of {"caption", "bbox", "bbox_type", "image"}; either
may be JSON in a text. Source: ms-swift, docs/source_en/Customization/Custom-dataset.md, "Grounding".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sat_models.processing.box_forms import Corners
from sat_models.processing.prompts import Turn
from sat_models.training.boxed_text import BOX_MARK, MARKS, BoxGroup, named
from sat_models.training.grounding.annotated import Annotated, checked_box, checked_name, size_of
from sat_models.training.image_names import IMAGE_KEYS
from sat_models.training.records import EntryError, ImageFile

OBJECTS = "objects"
SCALES = {"real": None, "norm1": 1.0, "norm_1": 1.0, "norm1000": 1000.0, "norm_1000": 1000.0}
"""`bbox_type` -> what a side is divided into; None: its pixels."""
_NAME = "<|ref|>"
_PLACES = {"<ref-object>": _NAME, "<bbox>": BOX_MARK}
_RUNS = re.compile(rf"{re.escape(_NAME)}|{re.escape(BOX_MARK)}(?:\s*{re.escape(BOX_MARK)})*")
_OLD = {"caption": "ref", "bbox": "bbox", "bbox_type": "bbox_type", "image": "image_id"}


@dataclass(frozen=True)
class Objects:
    """What an entry's `objects` holds.

    Attributes:
        names: of `<ref-object>`, in order.
        boxes: of `<bbox>`, in order, as they are written.
        scale: what a side is divided into; None for pixels.
        images: the picture of each box.
    """

    names: tuple[str, ...]
    boxes: tuple[tuple[float, ...], ...]
    scale: float | None
    images: tuple[int, ...]

    def corners(self, number: int, images: Sequence[ImageFile]) -> tuple[Corners, tuple[int, int]]:
        """A box in pixels, and the size of its picture. Raises EntryError."""
        if not 0 <= self.images[number] < len(images):
            raise EntryError(
                "boxes",
                f"'image_id' is {self.images[number]}, but there are {len(images)} picture(s); it counts from 0",
            )
        size = size_of(images[self.images[number]])
        sides = (1, 1, 1, 1) if self.scale is None else [side / self.scale for side in (*size, *size)]
        corners = [value * side for value, side in zip(self.boxes[number], sides, strict=True)]
        return checked_box(corners, size), size

    def annotated(self, images: Sequence[ImageFile], source: str) -> Annotated:
        """As an image with its objects, for an entry that asks nothing. Raises EntryError."""
        if len(images) != 1:
            raise EntryError("boxes", f"'objects' without a question are of one picture; the entry has {len(images)}")
        names = self.names * len(self.boxes) if len(self.names) == 1 else self.names
        if len(names) != len(self.boxes):
            raise EntryError(
                "boxes", f"'objects' has {len(names)} names for {len(self.boxes)} boxes; give one for each"
            )
        found = Annotated(images[0], size_of(images[0]), source)
        for number, name in enumerate(names):
            corners, _ = self.corners(number, images)
            found.add(name, corners)
        return found

    def placed(self, turns: Sequence[Turn], images: Sequence[ImageFile]) -> tuple[list[Turn], list[list[BoxGroup]]]:
        """Turns with names in the place of `<ref-object>`, and marks of boxes; and the boxes of each turn.

        Boxes that stand together are one group. Raises EntryError if there are not as many places as names and boxes.
        """
        texts = "".join(text for turn in turns for text in turn)
        for what, mark, given in (("ref", _NAME, len(self.names)), ("bbox", BOX_MARK, len(self.boxes))):
            places = texts.count(mark)
            if places != given and (places or what == "bbox"):
                shown = "<ref-object>" if what == "ref" else "<bbox>"
                raise EntryError(
                    "slots", f"{places} {shown} in the texts, but {given} in '{OBJECTS}.{what}'; give as many"
                )
        walk = _Walk(self, images)
        made, groups = [], []
        for question, answer in turns:
            made.append((walk.text(question), walk.text(answer)))
            groups.append(walk.taken())
        return made, groups


class _Walk:
    """Goes through texts in order and hands out names and boxes."""

    def __init__(self, objects: Objects, images: Sequence[ImageFile]) -> None:
        self.objects, self.images = objects, images
        self.name = self.box = 0
        self.last = objects.names[0] if objects.names else ""
        self.groups: list[BoxGroup] = []

    def text(self, text: str) -> str:
        return _RUNS.sub(self._place, text)

    def taken(self) -> list[BoxGroup]:
        """The groups since the last call."""
        groups, self.groups = self.groups, []
        return groups

    def _place(self, found: re.Match[str]) -> str:
        if found.group() == _NAME:
            self.last = self.objects.names[self.name]
            self.name += 1
            return named(self.last)
        made: list[BoxGroup] = []
        for number in range(self.box, self.box + found.group().count(BOX_MARK)):
            corners, size = self.objects.corners(number, self.images)
            image = self.objects.images[number]
            if made and made[-1].image == image:
                made[-1] = BoxGroup((*made[-1].boxes, corners), size, image, self.last)
            else:
                made.append(BoxGroup((corners,), size, image, self.last))
        self.box += found.group().count(BOX_MARK)
        self.groups += made
        return BOX_MARK * len(made)


def objects_of(entry: Mapping[str, Any]) -> Objects | None:
    """The objects of an entry; None where it has none, or empty ones.

    Raises:
        EntryError: they are not in the form, or a text holds a mark that has a meaning of its own here.
    """
    given = entry.get(OBJECTS)
    if isinstance(given, str) and given.strip():
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise EntryError("fields", f"'{OBJECTS}' is {given!a:.60}, a text that is not JSON") from None
    if isinstance(given, list) and given:
        given = _of_version_2(given)
    if given is None or given is False or given in ("", [], {}, {"ref": [], "bbox": []}):
        return None
    if not isinstance(given, Mapping) or not isinstance(given.get("bbox"), list):
        raise EntryError("fields", f"'{OBJECTS}' is {given!a:.60}; it must hold 'ref' and 'bbox', two lists")
    kind = given.get("bbox_type") or "real"
    if not isinstance(kind, str) or kind not in SCALES:
        raise EntryError("fields", f"'{OBJECTS}.bbox_type' is {kind!a:.40}; it must be one of {', '.join(SCALES)}")
    names = given.get("ref") or []
    if not isinstance(names, list):
        raise EntryError("fields", f"'{OBJECTS}.ref' is {names!a:.60}; it must be a list of texts")
    boxes = tuple(_four(box) for box in given["bbox"])
    images = given.get("image_id") or [0] * len(boxes)
    numbers = [image for image in images if isinstance(image, int)] if isinstance(images, list) else []
    if len(numbers) != len(boxes) or numbers != images:
        raise EntryError("fields", f"'{OBJECTS}.image_id' is {images!a:.60}; it must be a list of {len(boxes)} numbers")
    return Objects(tuple(map(checked_name, names)), boxes, SCALES[kind], tuple(numbers))


def with_marks(value: Any, key: str = "") -> Any:
    """An entry whose texts have marks of ours for `<ref-object>` and `<bbox>`. Raises EntryError if one had them."""
    if isinstance(value, Mapping):
        return {name: with_marks(one, name) for name, one in value.items() if name != OBJECTS}
    if isinstance(value, list):
        return [with_marks(one, key) for one in value]
    if not isinstance(value, str) or key in IMAGE_KEYS:
        return value
    if mark := next((mark for mark in (*MARKS, _NAME) if mark in value), None):
        raise EntryError("fields", f"'{key}' holds '{mark}', which has a meaning of its own here")
    for place, mark in _PLACES.items():
        value = value.replace(place, mark)
    return value


def refuse_marks(system: str) -> None:
    """Raises EntryError if a system text holds places of names or boxes."""
    if _RUNS.search(system):
        raise EntryError("fields", "the system text holds '<ref-object>' or '<bbox>'; move it to a question")


def _of_version_2(given: list[Any]) -> dict[str, Any]:
    """A list of objects, each with its own keys, as lists."""
    if not all(isinstance(one, Mapping) and {"caption", "bbox"} <= one.keys() <= _OLD.keys() for one in given):
        raise EntryError("fields", f"'{OBJECTS}' is {given!a:.60}; its items must have {', '.join(_OLD)}")
    kinds = {one.get("bbox_type", "real") for one in given if isinstance(one.get("bbox_type", "real"), str)}
    if len(kinds) != 1:
        raise EntryError("fields", f"'{OBJECTS}' has items of several bbox_type; write them all of one")
    lists = {_OLD[key]: [one.get(key, 0) for one in given] for key in ("caption", "bbox", "image")}
    return {**lists, "bbox_type": kinds.pop()}


def _four(box: Any) -> tuple[float, ...]:
    """The numbers of a box."""
    if isinstance(box, list) and len(box) == 2:
        raise EntryError("boxes", f"'{OBJECTS}.bbox' has the point {box!a:.40}; points are not read, boxes of four are")
    values = [value for value in box if isinstance(value, int | float)] if isinstance(box, list) else []
    if len(values) != 4 or values != box:
        raise EntryError("boxes", f"'{OBJECTS}.bbox' has {box!a:.60}; it must be four numbers: x0, y0, x1, y1")
    return tuple(values)
