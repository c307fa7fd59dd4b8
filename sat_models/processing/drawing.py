"""Boxes drawn on a picture. Never raises for odd boxes: a drawing must not cost the user the answer."""

from __future__ import annotations

import functools
import io
import logging
import math
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from sat_models.errors import InputError
from sat_models.files import check_place
from sat_models.processing.boxes import Box

logger = logging.getLogger(__name__)

PALETTE = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324", "#808000", "#000075")


def draw_boxes(image: Image.Image, boxes: Iterable[Box], *, labels: bool = True) -> Image.Image:
    """A copy of `image` in RGB with the boxes on it, one colour per phrase, the phrase as label.

    Corners outside the picture are clamped to it, swapped ones put in order, and values that are no numbers leave that
    box out. The font is Pillow's own, so none need be installed; characters it lacks show as boxes.

    Args:
        image: any mode; left as it was.
        boxes: with `pixels` relative to `image`.
        labels: write the phrases.
    """
    canvas = image.convert("RGB") if image.mode != "RGB" else image.copy()
    draw = ImageDraw.Draw(canvas)
    colours: dict[str, str] = {}
    font = _font(max(11, min(canvas.size) // 32))
    stroke = max(1, round(min(canvas.size) / 200))
    for box in boxes:
        corners = _inside(box.pixels, canvas.size)
        if corners is None:
            logger.warning("box %s of '%s' cannot be drawn", box.pixels, box.phrase)
            continue
        colour = colours.setdefault(box.phrase.lower(), PALETTE[len(colours) % len(PALETTE)])
        draw.rectangle(corners, outline=colour, width=stroke)
        if labels and box.phrase:
            _label(draw, box.phrase, corners, canvas.size, colour=colour, font=font)
    return canvas


def _inside(corners: tuple[float, ...], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Corners as whole pixels within the picture, in order; None if they are not four finite numbers."""
    try:
        x0, y0, x1, y1 = (float(value) for value in corners)
    except (TypeError, ValueError):
        return None
    if not all(map(math.isfinite, (x0, y0, x1, y1))):
        return None
    xs = sorted(round(max(0.0, min(x, size[0] - 1.0))) for x in (x0, x1))
    ys = sorted(round(max(0.0, min(y, size[1] - 1.0))) for y in (y0, y1))
    return xs[0], ys[0], xs[1], ys[1]


def _label(
    draw: ImageDraw.ImageDraw,
    text: str,
    corners: tuple[int, int, int, int],
    size: tuple[int, int],
    *,
    colour: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """White text on a filled strip above the box, or inside it where there is no room above."""
    text = _printable(text, font)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = max(0, min(corners[0], size[0] - width))
    y = corners[1] - height if corners[1] >= height else corners[1]
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    draw.text((x + 2 - left, y + 2 - top), text, fill="white", font=font)


def _printable(text: str, font: object) -> str:
    """One line of at most 40 characters; the bitmap font of a Pillow without FreeType knows Latin-1 only."""
    text = " ".join(text.split())
    text = text if len(text) <= 40 else text[:39] + "\u2026"
    if isinstance(font, ImageFont.FreeTypeFont):
        return text
    return text.encode("latin-1", "replace").decode("latin-1")


@functools.lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's built-in font, scaled where Pillow has FreeType."""
    return ImageFont.load_default(size=size)


def check_writable(path: Path) -> None:
    """Sees that an image can be saved under a name, before an answer is made whose boxes belong into it.

    Raises:
        InputError: an ending that is no image type, a folder that is missing, or a place that cannot be written.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    try:
        Image.new("RGB", (1, 1)).save(io.BytesIO(), kind)
    except (KeyError, OSError, ValueError):
        raise InputError(
            f"'{path}' does not end as an image that can be written. Let it end in .png or .jpg."
        ) from None
    check_place(path)
