"""How families write boxes: brackets, what a side is divided into, and of which picture."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

Corners = tuple[float, float, float, float]
"""x0, y0, x1, y1."""


@dataclass(frozen=True)
class BoxForm:
    """The meaning of a family's boxes, and how it is told one.

    Attributes:
        scale: what a side is divided into.
        style: the brackets that one is written with: a key of `STYLES`.
        square: the sides are those of the picture padded to a square, its middle the picture's.
        tags: on either side of a group; then numbers have as many digits as they need, and reach `scale` itself.
        names: on either side of a name, where the family's own data mark them.
    """

    scale: int = 1000
    style: str = "[[]]"
    square: bool = False
    tags: tuple[str, str] | None = None
    names: tuple[str, str] = ("", "")

    @property
    def example(self) -> str:
        """How a box is written, with letters for its numbers."""
        return write_group([self.marks[1].join(("x0", "y0", "x1", "y1"))], self)

    @property
    def marks(self) -> tuple[str, str, str, str]:
        """What stands before the first number of a group, between numbers, between boxes, and behind the last number;
        `tags` stand around it."""
        return _MARKS_IN_TAGS if self.tags else _MARKS[self.style]

    @cached_property
    def numbers(self) -> list[str]:
        """Every number that a box of this form may hold, as it is written, from the smallest on."""
        if self.scale == 1:
            return [f"{value / 100:.2f}" for value in range(101)]
        if self.tags or self.style == "{<>}":
            return [str(value) for value in range(self.scale + 1)]
        return [f"{value:03d}" for value in range(self.scale)]


_MARKS = {
    "[[]]": ("[[", ",", ";", "]]"),
    "[]": ("[", ", ", "], [", "]"),
    "{<>}": ("{<", "><", ">}<delim>{<", ">}"),
}
_MARKS_IN_TAGS = ("[[", ", ", "], [", "]]")

BOX_FORMS: dict[str, BoxForm] = {
    "thousand": BoxForm(),
    "unit": BoxForm(scale=1, style="[]"),
    "unit of square": BoxForm(scale=1, style="[]", square=True),
    "hundred": BoxForm(scale=100, style="{<>}"),
    "thousand in tags": BoxForm(tags=("<box>", "</box>"), names=("<ref>", "</ref>")),
}
"""By the name that a family's `SequenceForm.boxes` has: CogVLM's, LLaVA's without and with padding (as LLaVA's issue
606 found), MiniGPT-v2's, InternVL's."""

_NUMBER = r"(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})"
_SIGNED = rf"(?:-0?\.\d{{1,9}}|{_NUMBER})"
"""Fractions may come out a little below 0."""
_FOUR = r"\s*,\s*".join([_SIGNED] * 4)
_POINT = rf"\(\s*{_SIGNED}\s*,\s*{_SIGNED}\s*\)"
_LIST = r"[\d\s,;.]*"
_GROUP = re.compile(
    rf"(?P<double>\[\s*\[{_LIST}(?:\](?:\s*[,;])?\s*\[{_LIST})*\]\s*\])"
    rf"|(?P<single>\[\s*{_FOUR}\s*\])"
    r"|(?P<braces>\{\s*(?:<\d{1,9}>\s*){4}\})"
    rf"|(?P<points>{_POINT}(?:\s*,)?\s*{_POINT}|\(\s*{_FOUR}\s*\))",
    re.ASCII,
)
STYLES = {"[[]]": "double", "[]": "single", "{<>}": "braces", "(),()": "points"}
"""Brackets -> the group that finds them."""
_STYLE_OF = {group: style for style, group in STYLES.items()}
_EDGES = "[] \t\r\n\f\v"
_BETWEEN = re.compile(r";|\]\s*[,;]?\s*\[")
_NUMBERS = re.compile(_SIGNED, re.ASCII)
_ONE = re.compile(rf"\s*{_FOUR}\s*", re.ASCII)
_CORNER = re.compile(rf"\s*{_NUMBER}\s*,\s*{_NUMBER}\s*", re.ASCII)


@dataclass(frozen=True)
class Group:
    """Boxes that stand together.

    Attributes:
        start, end: where, in characters.
        style: a key of `STYLES`.
        boxes: the text of each; one without four numbers is None.
        places: where the numbers of each stand, first to last, in characters; None as there.
    """

    start: int
    end: int
    style: str
    boxes: tuple[str | None, ...]
    places: tuple[tuple[int, int] | None, ...]


def groups_in(text: str) -> Iterator[Group]:
    """Every group of boxes of a text, in order, in whatever form."""
    for found in _GROUP.finditer(text):
        style = _STYLE_OF[found.lastgroup]
        parts = _parts(text, *found.span()) if style == "[[]]" else [(found.group(), *found.span())]
        read = [(part, _numbers_at(text, start, end)) for part, start, end in parts]
        boxes, places = zip(*(each if each[0] is not None else (None, None) for each in read), strict=True)
        yield Group(found.start(), found.end(), style, boxes, places)


def _parts(text: str, start: int, end: int) -> list[tuple[str | None, int, int]]:
    """The boxes between double brackets with the places where each begins and ends; None without four numbers."""
    inner = text[start:end]
    begin, last = start + len(inner) - len(inner.lstrip(_EDGES)), start + len(inner.rstrip(_EDGES))
    cuts = [begin, *(edge for cut in _BETWEEN.finditer(text, begin, last) for edge in cut.span()), last]
    parts = [(text[a:z], a, z) for a, z in zip(cuts[::2], cuts[1::2], strict=True)]
    if len(parts) % 2 == 0 and all(_CORNER.fullmatch(part) for part, _, _ in parts):  # [[x0, y0], [x1, y1]]
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [(f"{first},{second}", a, z) for (first, a, _), (second, _, z) in pairs]
    return [(part if _ONE.fullmatch(part) else None, a, z) for part, a, z in parts]


def _numbers_at(text: str, start: int, end: int) -> tuple[int, int] | None:
    """Where the numbers of a box stand."""
    spans = [found.span() for found in _NUMBERS.finditer(text, start, end)]
    return (spans[0][0], spans[-1][1]) if spans else None


def without_groups(text: str) -> str:
    """A text without its boxes and the tags that some families put around them."""
    without = _GROUP.sub("", text)
    return _TAGS.sub("", without) if without != text else text


_TAGS = re.compile(r"</?(?:box|ref|p)>|<delim>")
_NAMED = re.compile(r"<(ref|p)>([^<>]*)</\1>")


def named_before(segment: str) -> tuple[str | None, str]:
    """The phrase that tags name in front of a box (the last one), None without; and the segment without tags."""
    named = [found.group(2).strip() for found in _NAMED.finditer(segment)]
    return (named[-1] if named else None), _TAGS.sub("", segment)


def read_box(text: str, style: str, form: BoxForm | None) -> tuple[Corners, int]:
    """The four numbers of a box and the scale that they are of.

    Braces are of 100. Numbers with a point, none above 1, are of 1. Whole numbers 0 and 1 alone are of 1 where the
    family writes so, else of 1000, as everything else.
    """
    numbers = _NUMBERS.findall(text)
    values = tuple(map(float, numbers))
    if style == "{<>}":
        return values, 100
    small = max(values) <= 1
    if small and (any("." in number for number in numbers) or (form is not None and form.scale == 1)):
        return values, 1
    return values, 1000


def write_box(shares: Sequence[float], form: BoxForm) -> str:
    """The numbers of one box, without what a group has around them.

    Args:
        shares: corners as shares of the sides, in order, within 0 and 1.
    """
    if form.scale == 1:
        return form.marks[1].join(f"{value:.2f}" for value in shares)
    numbers = form.numbers
    return form.marks[1].join(numbers[min(round(value * form.scale), len(numbers) - 1)] for value in shares)


def write_group(boxes: Sequence[str], form: BoxForm) -> str:
    """Boxes of `write_box` as one text."""
    opening, _, between, closing = form.marks
    before, behind = form.tags or ("", "")
    return before + opening + between.join(boxes) + closing + behind
