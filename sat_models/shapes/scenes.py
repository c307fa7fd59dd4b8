"""The synthetic world that `cogvlm-tiny` is trained on: coloured shapes on plain backgrounds.

A picture holds one to three objects. No two share both colour and form, but colours alone and forms alone may repeat,
so that "the red circle" can only be found by binding a colour to a form. A large shape may carry a digit. Everything is
drawn from an explicit `random.Random`, hence the same seed gives the same picture.

Boxes are `[x0, y0, x1, y1]`; in pixels half-open (`x1 - x0` is the width), as text relative to width and height on a
scale of 0-999.
"""

from __future__ import annotations

import dataclasses
import random

from sat_models.errors import ConfigError

COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
FORMS = ("circle", "square", "triangle")
SIZES = ("small", "large")

RGB = tuple[int, int, int]

# The usual value of each colour comes first, then other values that people call by the same name.
COLOR_ANCHORS: dict[str, tuple[RGB, ...]] = {
    "red": ((255, 0, 0), (220, 20, 40), (230, 40, 40), (200, 0, 0)),
    "green": ((0, 128, 0), (0, 255, 0), (34, 139, 34), (50, 205, 50), (0, 170, 40)),
    "blue": ((0, 0, 255), (30, 80, 220), (65, 105, 225), (30, 120, 240), (0, 0, 190)),
    "yellow": ((255, 255, 0), (255, 235, 20), (250, 220, 30), (240, 230, 60)),
    "purple": ((128, 0, 128), (150, 40, 180), (148, 0, 211), (140, 60, 200), (110, 20, 140)),
    "orange": ((255, 165, 0), (255, 140, 0), (255, 127, 14), (240, 130, 20)),
}
COLOR_JITTER = 14  # each channel moves by at most this much around an anchor
SIZE_RANGES = {"small": (0.18, 0.26), "large": (0.34, 0.44)}  # width of an object / shorter side of the canvas
MIN_CONTRAST = 115.0  # Euclidean RGB distance between any background colour and any object
MAX_OBJECTS = 6  # where two colours repeat, so many differ in colour or form
GAP = 0.02  # smallest distance between the boxes of two objects and to the border, / shorter side


@dataclasses.dataclass(frozen=True)
class ShapeObject:
    """One object. `box` is its tight bounding box in canvas pixels, outline included."""

    color: str
    form: str
    size: str
    box: tuple[int, int, int, int]
    rgb: RGB
    apex: float = 0.5  # where a triangle's tip stands along its base, 0..1
    outline: RGB | None = None
    outline_width: int = 0  # pixels
    digit: int | None = None  # written on it

    @property
    def name(self) -> str:
        """Colour and form: `red circle`."""
        return f"{self.color} {self.form}"

    @property
    def center(self) -> tuple[float, float]:
        """Centre of the box in canvas pixels (x, y)."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclasses.dataclass(frozen=True)
class Background:
    """`solid`, `gradient` (from the first colour to the second along `angle` in degrees) or `noise` (solid with a
    grain of standard deviation `grain` in 0-255, each grain `grain_size` pixels wide)."""

    kind: str
    colors: tuple[RGB, ...]
    angle: float = 0.0
    grain: float = 0.0
    grain_size: int = 1


@dataclasses.dataclass(frozen=True)
class Scene:
    """A picture before it is drawn. `objects` stand in reading order: by the x of their centre, left to right, and by
    y where the x are equal. Captions name them in this order."""

    width: int
    height: int
    background: Background
    objects: tuple[ShapeObject, ...]
    antialias: bool = True
    jpeg_quality: int | None = None
    noise_seed: int = 0

    def box_999(self, obj: ShapeObject) -> tuple[int, int, int, int]:
        """Box of an object relative to the canvas, 0-999."""
        x0, y0, x1, y1 = obj.box
        relative = (x0 / self.width, y0 / self.height, x1 / self.width, y1 / self.height)
        return tuple(min(999, max(0, round(value * 1000))) for value in relative)  # type: ignore[return-value]


def sample_scene(rng: random.Random, *, max_objects: int = 3, min_objects: int = 1, digit_share: float = 0.0) -> Scene:
    """Draws a random scene.

    Args:
        rng: source of all randomness.
        max_objects: most objects in the picture, up to `MAX_OBJECTS`.
        min_objects: fewest objects in the picture, from 1 to `max_objects`.
        digit_share: how many of the large shapes carry a digit, 0 to 1; the rest of the scene does not depend on it.

    Returns:
        A scene whose objects lie fully inside the canvas and do not touch.

    Raises:
        ConfigError: numbers out of these ranges.
    """
    if not 1 <= min_objects <= max_objects <= MAX_OBJECTS:
        raise ConfigError(
            f"{min_objects} to {max_objects} objects in a picture: the fewest must be at least 1 and no more than the "
            f"most, the most no more than {MAX_OBJECTS}"
        )
    if not 0 <= digit_share <= 1:
        raise ConfigError(f"digit_share is {digit_share}; it must be from 0 (no digits) to 1 (on every large shape)")
    width, height = _sample_canvas(rng)
    count = rng.randint(min_objects, max_objects)
    outlined = rng.random() < 0.3
    objects: list[ShapeObject] = []
    while len(objects) < count:
        objects = _place_objects(rng, width, height, _sample_names(rng, count), outlined)
    objects.sort(key=lambda obj: obj.center)
    background = _sample_background(rng, [obj.rgb for obj in objects])
    if max(max(color) for color in background.colors) < 90:  # a dark outline would hide the border there
        objects = [dataclasses.replace(obj, outline=None, outline_width=0) for obj in objects]
    scene = Scene(
        width=width,
        height=height,
        background=background,
        objects=tuple(objects),
        antialias=rng.random() < 0.65,
        jpeg_quality=rng.randint(60, 95) if rng.random() < 0.08 else None,
        noise_seed=rng.getrandbits(32),
    )
    return _with_digits(scene, rng, digit_share) if digit_share else scene


def _with_digits(scene: Scene, rng: random.Random, share: float) -> Scene:
    """The scene with a digit on this share of its large shapes."""

    def marked(obj: ShapeObject) -> ShapeObject:
        chosen = obj.size == "large" and rng.random() < share
        return dataclasses.replace(obj, digit=rng.randrange(10)) if chosen else obj

    return dataclasses.replace(scene, objects=tuple(map(marked, scene.objects)))


def sample_rgb(rng: random.Random, color: str) -> RGB:
    """A value that people call by this name: half the time the usual one's neighbourhood, often the exact value."""
    anchors = COLOR_ANCHORS[color]
    anchor = anchors[0] if rng.random() < 0.45 else rng.choice(anchors)
    if rng.random() < 0.35:
        return anchor
    return tuple(min(255, max(0, c + rng.randint(-COLOR_JITTER, COLOR_JITTER))) for c in anchor)  # type: ignore


def _sample_canvas(rng: random.Random) -> tuple[int, int]:
    """Width and height in pixels: mostly square and at most 224, a quarter with an aspect of 3:4 to 4:3."""
    if rng.random() < 0.35:
        side = rng.choice((112, 128, 160, 200, 224, 224, 256, 300, 336, 448))
    else:
        side = rng.randint(112, 448) if rng.random() < 0.08 else rng.randint(112, 224)
    if rng.random() >= 0.25:
        return side, side
    long = min(448, round(side * rng.uniform(1.05, 4 / 3)))
    return (side, long) if rng.random() < 0.5 else (long, side)


def _sample_names(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Distinct (colour, form) pairs; often chosen so that colours or forms repeat."""
    colors = rng.sample(COLORS, 2) if rng.random() < 0.35 else COLORS
    pairs = [(color, form) for color in colors for form in FORMS]
    return rng.sample(pairs, count)


def _place_objects(
    rng: random.Random, width: int, height: int, names: list[tuple[str, str]], outlined: bool
) -> list[ShapeObject]:
    """Objects at free places; fewer than asked where no place was found."""
    shorter = min(width, height)
    gap = max(1, round(GAP * shorter))
    outline_width = max(1, round(shorter * rng.uniform(0.006, 0.014))) if outlined else 0
    outline = (rng.randint(0, 40),) * 3 if outlined else None
    placed: list[ShapeObject] = []
    for color, form in names:
        size = rng.choice(SIZES)
        for _ in range(25):
            w = round(shorter * rng.uniform(*SIZE_RANGES[size]))
            h = round(w * rng.uniform(0.84, 1.0)) if form == "triangle" else w
            x0, y0 = rng.randint(gap, width - w - gap), rng.randint(gap, height - h - gap)
            box = (x0, y0, x0 + w, y0 + h)
            if any(_near(box, other.box, gap) for other in placed):
                continue
            apex = rng.uniform(0.45, 0.55) if rng.random() < 0.4 else 0.5
            rgb = sample_rgb(rng, color)
            placed.append(ShapeObject(color, form, size, box, rgb, apex, outline, outline_width))
            break
    return placed


def _near(a: tuple[int, int, int, int], b: tuple[int, int, int, int], gap: int) -> bool:
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def _sample_background(rng: random.Random, objects: list[RGB]) -> Background:
    """A background that contrasts with every object."""
    for _ in range(12):
        background = _any_background(rng)
        ends = background.colors
        middle = [tuple((a + b) / 2 for a, b in zip(ends[0], ends[-1], strict=True))]
        if all(distance(c, rgb) >= MIN_CONTRAST for c in [*ends, *middle] for rgb in objects):
            return background
    return Background("solid", ((255, 255, 255),))


def _any_background(rng: random.Random) -> Background:
    kind = rng.random()
    if kind < 0.25:
        return Background("solid", ((255, 255, 255),))
    if kind < 0.36:
        return Background("solid", ((0, 0, 0),))
    base = _tint(rng)
    if kind < 0.66:
        return Background("solid", (base,))
    if kind < 0.82:
        return Background("gradient", (base, _tint(rng, dark=max(base) < 128)), angle=rng.uniform(0, 360))
    return Background("noise", (base,), grain=rng.uniform(3, 14), grain_size=rng.choice((1, 1, 2, 4, 12)))


def _tint(rng: random.Random, *, dark: bool | None = None) -> RGB:
    """A grey, pastel or very dark colour."""
    if dark is None:
        dark = rng.random() < 0.2
    grey = rng.randint(10, 70) if dark else rng.randint(120, 255)
    if rng.random() < 0.4:
        return (grey, grey, grey)
    spread = 20 if dark else 45
    grey = grey if dark else max(grey, 200)
    return tuple(min(255, max(0, grey + rng.randint(-spread, spread))) for _ in range(3))  # type: ignore[return-value]


def distance(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Euclidean, of two points or colours."""
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5
