"""A rule on pixels that finds the shapes of an image: what no network can flatter.

A pixel belongs to a shape if it is saturated and bright enough: of the world's colours the palest shape is more so
than the most coloured background. What hangs together is one object; its colour is that of most of its pixels by hue,
its edge lies where it is nearer to its own colour than to what is around it, and its form is the one that covers its
box best. A blob that is none of the forms, or of several colours, has no name.

Legend: H, W pixels of the image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sat_models.evaluation.wishes import Wanted, Wish
from sat_models.shapes.prompts import ANY_SHAPE, BACKGROUNDS, stands
from sat_models.shapes.scenes import COLORS, distance

_HUE_ENDS = {"red": 15, "orange": 45.3, "yellow": 85, "green": 180, "blue": 253, "purple": 330}
"""Degrees; red begins where purple ends."""
_LEAST_SATURATION, _LEAST_VALUE = 0.5, 100
_LEAST_SIDE = 0.07
"""Of an object / shorter side; what is smaller is dust."""
_LEAST_COVER = 0.8
"""Of a form: intersection over union of the object with the form that fills its box."""
_LEAST_ASPECT = 0.75
"""Of an object's shorter side / longer side; triangles have the least, 0.84."""
_EDGE, _AROUND = 2, 4
"""Pixels: so wide an edge may be; so far reaches what is around."""
_LEAST_SHARE = 0.75
"""Of an object's pixels that are of its colour."""
_SMALL = 0.3
"""Width / shorter side below which an object is small."""


@dataclass(frozen=True)
class Seen:
    """One object of an image. `color` or `form` are None where it is none of the world's; `box` is in pixels."""

    color: str | None
    form: str | None
    size: str
    box: tuple[int, int, int, int]

    def is_a(self, thing: Wanted) -> bool:
        """Whether it is what is wanted, wherever it stands."""
        return self.has_color(thing) and self.has_form(thing) and thing.size in (None, self.size)

    def has_color(self, thing: Wanted) -> bool:
        """Whether its colour will do."""
        return thing.color in (None, self.color)

    def has_form(self, thing: Wanted) -> bool:
        """Whether its form will do."""
        return self.form is not None and thing.noun in (*ANY_SHAPE, self.form)


def look(image: Image.Image) -> list[Seen]:
    """The objects of an image, from left to right."""
    pixels_HW3 = np.asarray(image.convert("RGB")).astype(np.float32)
    most = pixels_HW3.max(-1)
    chroma = most - pixels_HW3.min(-1)
    colored_HW = (chroma > _LEAST_SATURATION * most) & (most > _LEAST_VALUE)
    hues_HW = _hue(pixels_HW3, most, chroma)
    shorter = min(colored_HW.shape)
    seen: list[Seen] = []
    for part_HW, (x0, y0, x1, y1) in sorted(_parts(colored_HW), key=lambda part: -part[0].size):
        inside = any(x0 >= a and y0 >= b and x1 <= c and y1 <= d for a, b, c, d in (one.box for one in seen))
        if inside or min(x1 - x0, y1 - y0) < _LEAST_SIDE * shorter:  # the middle of a digit, or dust
            continue
        color = _color(hues_HW[y0:y1, x0:x1][part_HW])
        whole_HW, (x0, y0, x1, y1) = _to_its_edge(pixels_HW3, part_HW, (x0, y0))
        size = "small" if x1 - x0 < _SMALL * shorter else "large"
        seen.append(Seen(color, _form(whole_HW), size, (x0, y0, x1, y1)))
    return sorted(seen, key=lambda one: one.box[0] + one.box[2])


def background_of(image: Image.Image) -> str:
    """The nearest of `BACKGROUNDS` to the middle value of the image's frame."""
    pixels_HW3 = np.asarray(image.convert("RGB"))
    frame = np.concatenate((pixels_HW3[0], pixels_HW3[-1], pixels_HW3[:, 0], pixels_HW3[:, -1]))
    middle = tuple(np.median(frame, axis=0).tolist())
    return min(BACKGROUNDS, key=lambda name: distance(BACKGROUNDS[name], middle))


def scores_of(wish: Wish, image: Image.Image) -> dict[str, float]:
    """What of a prompt is there, each 1 or 0.

    Returns:
        `count`: as many objects as asked for; `color`, `form`: those asked for are there, whatever they belong to;
        `names`: each object is there as named, its size included; `place` where places are asked for: each stands
        where it is to; `background` where it is named; `right`: all of them, and nothing else.
    """
    seen, side = look(image), min(image.size)
    total, slots = len(seen), [thing for thing in wish.things for _ in range(thing.count)]
    first = [sum(thing.count for thing in wish.things[:number]) for number in range(len(wish.things))]

    def placed(chosen: Sequence[Seen]) -> bool:
        return all(
            stands(chosen[first[number]].box, place, chosen[first[of]].box, side)
            for number, thing in enumerate(wish.things)
            for place, of in thing.places
        )

    fits: dict[str, Callable[[Seen, Wanted], bool]] = {
        "color": Seen.has_color, "form": Seen.has_form, "names": Seen.is_a,
    }  # fmt: skip
    scores = {"count": total == wish.total if wish.only else total >= wish.total}
    scores |= {name: any(True for _ in _matches(slots, seen, fit)) for name, fit in fits.items()}
    if any(thing.places for thing in wish.things):
        scores["place"] = any(placed(chosen) for chosen in _matches(slots, seen, Seen.is_a))
    if wish.background:
        scores["background"] = background_of(image) == wish.background
    scores["right"] = all(scores.values())
    return {name: float(value) for name, value in scores.items()}


def _matches(
    slots: Sequence[Wanted], seen: Sequence[Seen], fit: Callable[[Seen, Wanted], bool]
) -> Iterator[tuple[Seen, ...]]:
    """All ways to give each slot an object of its own that fits."""
    if not slots:
        yield ()
        return
    for number, one in enumerate(seen):
        if fit(one, slots[0]):
            for rest in _matches(slots[1:], [*seen[:number], *seen[number + 1 :]], fit):
                yield (one, *rest)


def _hue(pixels_HW3: np.ndarray, most: np.ndarray, chroma: np.ndarray) -> np.ndarray:
    """Degrees, [H, W]; grey has none, and gets some."""
    red, green, blue = np.moveaxis(pixels_HW3, -1, 0)
    span = np.maximum(chroma, 1)
    sector = np.where(
        most == red,
        (green - blue) / span % 6,
        np.where(most == green, (blue - red) / span + 2, (red - green) / span + 4),
    )
    return sector * 60


def _color(hues: np.ndarray) -> str | None:
    numbers = np.searchsorted(list(_HUE_ENDS.values()), hues) % len(COLORS)
    counts = np.bincount(numbers, minlength=len(COLORS))
    best = int(counts.argmax())
    return list(_HUE_ENDS)[best] if counts[best] >= _LEAST_SHARE * counts.sum() else None


def _to_its_edge(
    pixels_HW3: np.ndarray, part_HW: np.ndarray, corner: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """A part with the pixels at its edge that are nearer to its colour than to what is around it, and its box. Edges
    are soft where they were smoothed or drawn over grey; by saturation alone a part would lose its corners."""
    height, width = part_HW.shape
    x0, y0 = corner
    xa, ya = max(0, x0 - _AROUND), max(0, y0 - _AROUND)
    window_HW3 = pixels_HW3[ya : y0 + height + _AROUND, xa : x0 + width + _AROUND]
    grown_HW = np.zeros(window_HW3.shape[:2], bool)
    grown_HW[y0 - ya : y0 - ya + height, x0 - xa : x0 - xa + width] = part_HW
    color = np.median(window_HW3[grown_HW], axis=0)
    for _ in range(_EDGE):
        padded = np.pad(grown_HW, 1)
        grown_HW = padded[1:-1, 1:-1] | padded[2:, 1:-1] | padded[:-2, 1:-1] | padded[1:-1, 2:] | padded[1:-1, :-2]
    around = np.median(window_HW3[~grown_HW], axis=0) if not grown_HW.all() else color
    nearer_HW = np.linalg.norm(window_HW3 - color, axis=-1) < np.linalg.norm(window_HW3 - around, axis=-1)
    whole_HW = grown_HW & nearer_HW
    if not whole_HW.any():
        return part_HW, (x0, y0, x0 + width, y0 + height)
    rows, columns = np.flatnonzero(whole_HW.any(1)), np.flatnonzero(whole_HW.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    box = (int(xa + left), int(ya + top), int(xa + right), int(ya + bottom))
    return whole_HW[top:bottom, left:right], box


def _form(part_HW: np.ndarray) -> str | None:
    """The form that fills the box of a part as the part does; the box is known to a pixel on each side, no better. All
    forms are convex: rows are filled between their ends, so that a digit makes no hole."""
    if min(part_HW.shape) < _LEAST_ASPECT * max(part_HW.shape):
        return None
    padded = np.pad(part_HW, 1)
    height, width = padded.shape
    first, last = padded.argmax(1), width - padded[:, ::-1].argmax(1)
    column = np.arange(width)
    filled = (column >= first[:, None]) & (column < last[:, None]) & padded.any(1, keepdims=True)
    for step in ((0,), (-1, 0, 1)):
        covers: dict[str, float] = {}
        for left, top, right, bottom in itertools.product(step, repeat=4):
            box = (1 + left, 1 + top, width - 1 + right, height - 1 + bottom)
            for form, mask in _ideals(height, width, box).items():
                cover = float((filled & mask).sum() / (filled | mask).sum())
                covers[form] = max(cover, covers.get(form, 0))
        best = max(covers, key=covers.__getitem__)
        if covers[best] >= _LEAST_COVER:
            return best
    return None


def _ideals(height: int, width: int, box: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    """Each form in a box, as a mask of [height, width]."""
    x0, y0, x1, y1 = box
    x = (np.arange(width) + 0.5 - x0) / max(1, x1 - x0)
    y = ((np.arange(height) + 0.5 - y0) / max(1, y1 - y0))[:, None]
    inside = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    return {
        "circle": (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25,
        "square": inside,
        "triangle": inside & (np.abs(x - 0.5) <= y / 2),
    }


def _parts(mask_HW: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[int, int, int, int]]]:
    """What hangs together, each as a mask of its box and the box: runs of rows, joined where they touch."""
    runs: list[tuple[int, int, int]] = []
    parent: list[int] = []

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    above: list[int] = []
    for y, row in enumerate(mask_HW):
        ends = np.flatnonzero(np.diff(np.concatenate(([0], row.astype(np.int8), [0]))))
        here = []
        for x0, x1 in ends.reshape(-1, 2).tolist():
            number = len(runs)
            runs.append((y, x0, x1))
            parent.append(number)
            here.append(number)
            for other in above:
                if runs[other][1] < x1 and x0 < runs[other][2]:
                    parent[root(other)] = root(number)
        above = here
    groups: dict[int, list[tuple[int, int, int]]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(root(number), []).append(run)
    for group in groups.values():
        rows, lefts, rights = zip(*group, strict=True)
        x0, y0, x1, y1 = min(lefts), min(rows), max(rights), max(rows) + 1
        part = np.zeros((y1 - y0, x1 - x0), bool)
        for y, left, right in group:
            part[y - y0, left - x0 : right - x0] = True
        yield part, (x0, y0, x1, y1)
