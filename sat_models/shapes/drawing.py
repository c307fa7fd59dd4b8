"""How scenes of the synthetic world are drawn."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sat_models.processing.pixels import resize
from sat_models.shapes.scenes import Scene, ShapeObject, distance

DIGIT_HEIGHTS = {"circle": 0.6, "square": 0.7, "triangle": 0.45}
"""Of a digit's ink / height of the shape that carries it."""


def draw(scene: Scene) -> Image.Image:
    """Draws a scene.

    Returns:
        RGB picture of `scene.width` x `scene.height` pixels.
    """
    image = _draw_background(scene)
    for obj in scene.objects:
        x0, y0, x1, y1 = obj.box
        mask = _form_mask(obj.form, x1 - x0, y1 - y0, obj.apex, 0, scene.antialias)
        if obj.outline is not None:
            image.paste(obj.outline, (x0, y0), mask)
            mask = _form_mask(obj.form, x1 - x0, y1 - y0, obj.apex, obj.outline_width, scene.antialias)
        image.paste(obj.rgb, (x0, y0), mask)
        if obj.digit is not None:
            _write_digit(image, obj)
    if scene.jpeg_quality is not None:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=scene.jpeg_quality, subsampling=0)
        image = Image.open(buffer).convert("RGB")
    return image


def _draw_background(scene: Scene) -> Image.Image:
    background, size = scene.background, (scene.width, scene.height)
    if background.kind == "solid":
        return Image.new("RGB", size, background.colors[0])
    if background.kind == "gradient":
        ramp = np.linspace(0, 1, 64, dtype=np.float32)
        angle = np.deg2rad(background.angle)
        field = np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]
        field = ((field - field.min()) / max(np.ptp(field), 1e-6))[..., None]
        first, last = (np.array(color, dtype=np.float32) for color in background.colors)
        ramps = Image.fromarray((first + (last - first) * field).round().astype(np.uint8))
        return resize(ramps, size, Image.Resampling.BILINEAR)
    grain = background.grain_size
    shape = (-(-scene.height // grain), -(-scene.width // grain), 1)
    noise = np.random.default_rng(scene.noise_seed).standard_normal(shape, dtype=np.float32) * background.grain
    pixels = np.clip(np.array(background.colors[0], dtype=np.float32) + noise, 0, 255).astype(np.uint8)
    return resize(Image.fromarray(pixels), size, Image.Resampling.BILINEAR if grain > 1 else Image.Resampling.NEAREST)


def _form_mask(form: str, width: int, height: int, apex: float, inset: int, antialias: bool) -> Image.Image:
    """Mask of a form that fills `width` x `height` pixels, shrunk by `inset` pixels on every side."""
    scale = 3 if antialias and form != "square" else 1
    w, h, t = width * scale, height * scale, inset * scale
    mask = Image.new("L", (w, h), 0)
    pen = ImageDraw.Draw(mask)
    frame = (t, t, w - 1 - t, h - 1 - t)
    if form == "circle":
        pen.ellipse(frame, fill=255)
    elif form == "square":
        pen.rectangle(frame, fill=255)
    else:
        pen.polygon(_inset_triangle([(0.0, h - 1.0), (w - 1.0, h - 1.0), (apex * (w - 1), 0.0)], t), fill=255)
    return mask.reduce(scale) if scale > 1 else mask


def _write_digit(image: Image.Image, obj: ShapeObject) -> None:
    """Its digit in black or white, whichever contrasts more, in the middle of the shape; of a triangle further down."""
    x0, y0, x1, y1 = obj.box
    height = (y1 - y0) * DIGIT_HEIGHTS[obj.form]
    light = 0.299 * obj.rgb[0] + 0.587 * obj.rgb[1] + 0.114 * obj.rgb[2]
    font = ImageFont.load_default(size=height / 0.71)  # its digits are 0.71 of the size high
    middle = (x0 + x1) / 2, y0 + (y1 - y0) * (0.68 if obj.form == "triangle" else 0.5)
    left, top, right, bottom = font.getbbox(str(obj.digit))
    place = middle[0] - (left + right) / 2, middle[1] - (top + bottom) / 2
    fill = (0, 0, 0) if light > 110 else (255, 255, 255)
    ImageDraw.Draw(image).text(place, str(obj.digit), font=font, fill=fill, stroke_width=0)


def _inset_triangle(corners: list[tuple[float, float]], inset: float) -> list[tuple[float, float]]:
    """The triangle whose sides lie `inset` further in: scaled about the centre of the inscribed circle."""
    if not inset:
        return corners
    a, b, c = corners
    sides = (distance(b, c), distance(a, c), distance(a, b))
    total = sum(sides)
    area = abs((b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])) / 2
    factor = max(0.0, 1 - inset * total / (2 * area))
    center = tuple(sum(side * p[i] for side, p in zip(sides, corners, strict=True)) / total for i in (0, 1))
    return [(center[0] + (x - center[0]) * factor, center[1] + (y - center[1]) * factor) for x, y in corners]
