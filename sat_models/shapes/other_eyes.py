"""The synthetic world through other eyes: pictures and words that `cogvlm-tiny` was not taught with.

A model that only knows its teacher's hand would pass the test on `drawing.draw` and fail its user. So part of the test
is drawn by code that shares nothing with it but the description of the world: objects are placed on other canvases
(mostly 4:3) with colours from ranges of hue, filled by their distance from each pixel instead of by Pillow's pen, and
most pictures go through JPEG with halved colour. The questions are worded as no training question is.

Legend: H, W pixels of the canvas.
"""

from __future__ import annotations

import colorsys
import dataclasses
import io
import random

import numpy as np
from PIL import Image

from sat_models.shapes.scenes import COLORS, FORMS, RGB, SIZES, Background, Scene, ShapeObject, distance

CANVASES = ((320, 240), (640, 480), (240, 320), (400, 300), (160, 120), (256, 256), (500, 500))
HUES = {
    "red": (-6, 6),
    "green": (100, 140),
    "blue": (220, 240),
    "yellow": (54, 60),
    "purple": (282, 300),
    "orange": (28, 38),
}  # degrees
VALUES = {"green": (0.5, 1.0), "blue": (0.75, 1.0), "purple": (0.5, 0.75)}  # HSV value; the others (0.92, 1.0)
WIDTHS = {"small": (0.19, 0.25), "large": (0.35, 0.43)}  # of an object / shorter side
BACKGROUNDS: tuple[RGB, ...] = (
    (255, 255, 255),
    (0, 0, 0),
    (245, 245, 245),
    (40, 40, 48),
    (235, 240, 250),
    (200, 200, 205),
)
MIN_DISTANCE = 115.0  # RGB, of the background from each object

WORDINGS: dict[str, tuple[str, ...]] = {
    "caption": ("Describe what you see.", "What objects are in this picture?", "Tell me what is in the image."),
    "grounded_caption": (
        "Describe the picture with a box for each shape.",
        "Tell me what you see, with boxes.",
        "Describe each object in this image and give the boxes.",
    ),
    "rec": ("Give me the box of {expr}.", "Where do you see {expr}?", "What is the box of {expr}?"),
    "reg": ("Tell me what is at {box}.", "What do you see in the area {box}?", "Describe what is within {box}."),
    "color": (
        "Tell me the color of the {noun}.",
        "The {noun} is what color?",
        "What color does the {noun} in this picture have?",
    ),
    "form": ("What is the shape of the {color} object?", "Tell me the form of the {color} shape."),
    "count": ("How many {nouns} do you see?", "Tell me how many {nouns} are in the picture."),
    "exist": ("Is {name} in the picture?", "Can you see {name} there?"),
    "size": ("Tell me the size of the {name}, small or large.", "The {name} is small or large?"),
    "left_right": (
        "Do you see the {name} left or right of the {other}?",
        "The {name} is left or right of the {other}?",
    ),
    "above_below": (
        "Do you see the {name} above or below the {other}?",
        "The {name} is above or below the {other}?",
    ),
}
"""By kind of question (`QA.kind`); of parts of the world's vocabulary, in an order that is taught nowhere."""


def other_scene(rng: random.Random, *, max_objects: int = 3) -> Scene:
    """A scene of the world, chosen by other rules than `scenes.sample_scene` has.

    Args:
        rng: source of all randomness.
        max_objects: most objects in the picture, 1 to 3.
    """
    width, height = rng.choice(CANVASES)
    count = rng.randint(1, max_objects)
    objects: list[ShapeObject] = []
    while len(objects) < count:
        objects = _objects(rng, width, height, count)
    ground = [c for c in BACKGROUNDS if all(distance(c, obj.rgb) > MIN_DISTANCE for obj in objects)]
    color = rng.choice(ground or [(255, 255, 255)])
    if max(color) < 90:
        objects = [dataclasses.replace(obj, outline=None, outline_width=0) for obj in objects]
    return Scene(
        width,
        height,
        Background("solid", (color,)),
        tuple(sorted(objects, key=lambda obj: obj.center)),
        jpeg_quality=rng.randint(55, 90) if rng.random() < 0.6 else None,
    )


def draw_other(scene: Scene) -> Image.Image:
    """RGB picture of `scene.width` x `scene.height` pixels; shades at an edge follow the distance from it."""
    pixels_HW3 = np.empty((scene.height, scene.width, 3), np.float32)
    pixels_HW3[:] = scene.background.colors[0]
    for obj in scene.objects:
        depth = -signed_distance(obj, scene.width, scene.height)
        layers = [(0, obj.rgb)] if obj.outline is None else [(0, obj.outline), (obj.outline_width, obj.rgb)]
        for inset, color in layers:
            cover = np.clip(0.5 + depth - inset, 0, 1)[..., None]
            pixels_HW3 += cover * (np.asarray(color, np.float32) - pixels_HW3)
    image = Image.fromarray(pixels_HW3.round().astype(np.uint8))
    if scene.jpeg_quality is None:
        return image
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=scene.jpeg_quality, subsampling="4:2:0")
    return Image.open(buffer).convert("RGB")


def signed_distance(obj: ShapeObject, width: int, height: int) -> np.ndarray:
    """Distance of each pixel's centre from the object's edge in pixels, negative inside: [H, W] float32."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    x0, y0, x1, y1 = obj.box
    if obj.form == "circle":
        return np.hypot(x - (x0 + x1) / 2, y - (y0 + y1) / 2) - (x1 - x0) / 2
    if obj.form == "square":
        return np.maximum(np.abs(x - (x0 + x1) / 2) - (x1 - x0) / 2, np.abs(y - (y0 + y1) / 2) - (y1 - y0) / 2)
    tip = x0 + obj.apex * (x1 - x0)
    sides = [y - y1]  # the base, then the left and the right side
    for foot, sign in ((x0, 1), (x1, -1)):
        along = np.array((tip - foot, y0 - y1), np.float32)
        sides.append(sign * ((x - foot) * along[1] - (y - y1) * along[0]) / np.hypot(*along))
    return np.maximum.reduce(sides)


def _objects(rng: random.Random, width: int, height: int, count: int) -> list[ShapeObject]:
    """Objects in cells of a shuffled grid; fewer than asked where they would touch."""
    names = [(color, form) for color in COLORS for form in FORMS]
    shorter, placed = min(width, height), []
    outline = (rng.randint(0, 50),) * 3 if rng.random() < 0.4 else None
    line = max(1, round(0.01 * shorter)) if outline else 0
    for color, form in rng.sample(names, count):
        size = rng.choice(SIZES)
        side = round(shorter * rng.uniform(*WIDTHS[size]))
        for _ in range(40):
            x0 = round(rng.uniform(0.02, 0.98) * (width - side - 8)) + 4
            y0 = round(rng.uniform(0.02, 0.98) * (height - side - 8)) + 4
            box = (x0, y0, x0 + side, y0 + side)
            if all(_apart(box, other.box, 4) for other in placed):
                placed.append(ShapeObject(color, form, size, box, _shade(rng, color), 0.5, outline, line))
                break
    return placed


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int], gap: int) -> bool:
    return a[2] + gap <= b[0] or b[2] + gap <= a[0] or a[3] + gap <= b[1] or b[3] + gap <= a[1]


def _shade(rng: random.Random, color: str) -> RGB:
    hue = rng.uniform(*HUES[color]) % 360 / 360
    value = rng.uniform(*VALUES.get(color, (0.92, 1.0)))
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, rng.uniform(0.88, 1.0), value))  # type: ignore
