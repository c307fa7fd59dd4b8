"""An annotated image: what is where on it, in pixels. Every reader of annotations ends here, and every check is here.

A fault costs what it touches: the names that it makes incomplete are not asked for, and an image of which something is
missing is not described. Each fault is a problem of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from PIL import Image

from sat_models.errors import InputError
from sat_models.processing.box_forms import Corners
from sat_models.processing.image import load_image
from sat_models.text import is_utf8
from sat_models.training.boxed_text import MARKS
from sat_models.training.marks import check_answer, with_slots
from sat_models.training.records import EntryError, ImageFile, OnProblem

MARGIN = 1.0
"""Pixels that a box may reach over an edge: tools round; such corners are moved to the edge."""
_TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Thing:
    """A box and what it is called.

    Attributes:
        name: a category or a phrase.
        box: (x0, y0, x1, y1) in pixels, inside of the image and of some size.
    """

    name: str
    box: Corners


@dataclass
class Annotated:
    """One image.

    Attributes:
        image: a file, or a URL.
        size: width and height in pixels, upright.
        source: for messages.
        things: in the order of the annotations.
        captions: of the whole image.
        known: all names that the annotators looked for; empty where they named what they liked.
        partial: names of which not every box is known.
        whole: nothing was left out because of a fault.
    """

    image: ImageFile
    size: tuple[int, int]
    source: str
    things: list[Thing] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    known: Sequence[str] = ()
    partial: set[str] = field(default_factory=set)
    whole: bool = True

    def add(self, name: str, corners: Sequence[float]) -> None:
        """One box.

        Raises:
            EntryError: a name that is none, or corners that are no box of this image; the name is partial then.
        """
        try:
            self.things.append(Thing(checked_name(name), checked_box(corners, self.size, name)))
        except EntryError:
            self.partial.add(name)
            raise

    def add_caption(self, caption: str) -> None:
        """A sentence about the whole image. Raises EntryError if it is empty, or holds what an answer cannot."""
        if not caption.strip():
            raise EntryError("empty", "the caption is empty")
        check_answer(caption, "the caption")
        self.captions.append(caption.strip())

    @contextmanager
    def reporting(self, source: str, on_problem: OnProblem) -> Iterator[None]:
        """Inside, a fault is told with its place, and that something is missing is noted."""
        with reporting(source, on_problem):
            try:
                yield
            except (EntryError, InputError):
                self.whole = False
                raise


@contextmanager
def reporting(source: str, on_problem: OnProblem) -> Iterator[None]:
    """Inside, a fault is told with its place, and reading goes on behind the block if `on_problem` returns."""
    try:
        yield
    except EntryError as error:
        on_problem(error.at(source))
    except InputError as error:
        on_problem(EntryError("fields", str(error)).at(source))


def checked_name(name: str) -> str:
    """A name in one line.

    Raises:
        EntryError: it is empty, no UTF-8, or holds a mark that stands for something else.
    """
    if not isinstance(name, str) or not name.strip():
        raise EntryError("boxes", f"the name of a box is {name!a:.60}; it must be text: name what is in the box")
    if not is_utf8(name):
        raise EntryError("boxes", f"the name {name!a:.60} cannot be written as UTF-8; write it anew")
    if mark := next((mark for mark in MARKS if mark in name), None):
        raise EntryError("boxes", f"the name '{name:.60}' holds '{mark}', which has a meaning of its own here")
    where = f"the name '{name:.60}'"
    check_answer(name, where)
    if with_slots(name, where)[1]:
        raise EntryError("boxes", f"{where} holds a mark of a picture; write what is in the box")
    return " ".join(name.split())


def checked_box(corners: Sequence[float], size: tuple[int, int], name: str = "") -> Corners:
    """Corners inside of an image, moved to its edge where rounding has put them over it. They are kept to hundredths of
    a pixel, so that the shares and percentages of some annotations give the same as the pixels of others.

    Args:
        corners: (x0, y0, x1, y1) in pixels.
        size: width and height of the image.
        name: for messages.

    Raises:
        EntryError: not four finite numbers, a box of no size, or one that is not inside.
    """
    what = f"the box of '{name:.60}'" if name else "a box"
    given = [value for value in corners if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(given) != 4 or len(corners) != 4 or not all(map(math.isfinite, given)):
        raise EntryError("boxes", f"{what} is {list(corners)!a:.80}; it must be four finite numbers")
    x0, y0, x1, y1 = given
    shown = ", ".join(f"{value:g}" for value in given)
    width, height = size
    if x1 <= x0 or y1 <= y0:
        raise EntryError(
            "boxes", f"{what} is ({shown}) px, of no size: its second corner must be right of and below its first"
        )
    if min(x0, y0) < -MARGIN or x1 > width + MARGIN or y1 > height + MARGIN:
        raise EntryError(
            "boxes",
            f"{what} is ({shown}) px; it must lie inside of its picture, which has {width} x {height} px. Are they "
            "of that picture, and corners (not a corner and a size)?",
        )
    inside = (max(0.0, x0), max(0.0, y0), min(float(width), x1), min(float(height), y1))
    if inside[2] <= inside[0] or inside[3] <= inside[1]:
        raise EntryError("boxes", f"{what} is ({shown}) px: it lies outside of its picture of {width} x {height} px")
    return tuple(round(float(value), 2) for value in inside)  # type: ignore[return-value]


def check_size(said: Sequence[float], size: tuple[int, int]) -> None:
    """Sees that annotations are of the image that is there.

    Args:
        said: width and height that the annotations name.
        size: those of the file.

    Raises:
        EntryError: they differ, so that every box would be at a wrong place.
    """
    if tuple(said) != tuple(size):
        raise EntryError(
            "boxes",
            f"the annotations are of a picture of {said[0]:g} x {said[1]:g} px, but this one has {size[0]} x {size[1]} "
            "px (upright): boxes would be at wrong places. Give the picture that was annotated",
        )


def size_of(image: ImageFile) -> tuple[int, int]:
    """Width and height of an image in pixels as it is shown: turned as its EXIF data say. Only its header is read.

    Raises:
        EntryError: it cannot be read, or is a URL that would have to be fetched.
    """
    if isinstance(image, str) and re.match(r"\s*https?://", image):
        raise EntryError(
            "image", f"the picture is at {image:.80}: its size is not known. Download it, and name the file"
        )
    try:
        if isinstance(image, str):
            return load_image(image).size
        with Image.open(image) as opened:
            width, height = opened.size
            return (height, width) if opened.getexif().get(_ORIENTATION) in _TURNED else (width, height)
    except Exception as error:  # damaged files raise anything
        raise EntryError("image", _reason(image, error)) from error


def _reason(image: ImageFile, error: Exception) -> str:
    """Why an image cannot be opened, as reading it whole says; else the first line of what happened."""
    try:
        load_image(image)
    except InputError as known:
        return str(known)
    return f"the picture {str(image)[:200]} has a header that cannot be read ({str(error).splitlines()[:1]})"
