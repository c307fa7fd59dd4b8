"""Captchas to practise on: digits on a noisy background. The file name is the answer, as `formats.py` reads it back."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sat_models.errors import ConfigError

WIDTH, HEIGHT = 160, 80
"""Pixels of a picture."""
_SUPERSAMPLE = 2


def write_captchas(output: Path, *, count: int, digits: int = 4, seed: int = 0) -> list[Path]:
    """Draws `<answer>_<number>.png`, such as `0427_000001.png`.

    Args:
        output: folder, made where missing.
        count: pictures.
        digits: length of each answer.
        seed: the same seed draws the same pictures, and the first of a larger set are those of a smaller one.

    Raises:
        ConfigError: `digits` is not 1 to 8, or `count` is not positive.
    """
    if not 1 <= digits <= 8 or count < 1:
        raise ConfigError(f"{count} captchas of {digits} digits: at least one is wanted, of 1 to 8 digits")
    output.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(1, count + 1):
        rng = random.Random(f"captcha/{seed}/{digits}/{number}")
        answer = "".join(rng.choice("0123456789") for _ in range(digits))
        path = output / f"{answer}_{number:06d}.png"
        draw_captcha(answer, rng).save(path)
        paths.append(path)
    return paths


def draw_captcha(text: str, rng: random.Random) -> Image.Image:
    """A picture of `text`, `WIDTH` x `HEIGHT`, RGB: each character a little turned, moved and coloured, thin lines over
    them, faint grain. Made to be legible."""
    scale = _SUPERSAMPLE
    canvas = Image.new("RGB", (WIDTH * scale, HEIGHT * scale), tuple(rng.randint(215, 255) for _ in range(3)))
    cell = WIDTH * scale / (len(text) + 0.5)
    size = round(min(HEIGHT * scale * 0.72, cell * 1.5))
    for index, char in enumerate(text):
        shape = _turned(char, size, angle=rng.uniform(-18, 18))
        colour = tuple(rng.randint(0, 110) for _ in range(3))
        x = cell * (index + 0.75) - shape.width / 2 + rng.uniform(-0.06, 0.06) * cell
        y = (HEIGHT * scale - shape.height) / 2 + rng.uniform(-0.08, 0.08) * HEIGHT * scale
        canvas.paste(colour, (round(x), round(y)), shape)
    _add_lines(canvas, rng, count=rng.randint(1, 3))
    return _grain(canvas.resize((WIDTH, HEIGHT), Image.Resampling.BOX), rng)


def _turned(char: str, size: int, *, angle: float) -> Image.Image:
    """The shape of one character as a mask, cut to its ink, turned by `angle` degrees."""
    mask = Image.new("L", (2 * size, 2 * size))
    ImageDraw.Draw(mask).text(
        (size // 2, size // 2), char, font=ImageFont.load_default(size=size), fill=255, stroke_width=max(1, size // 30)
    )
    mask = mask.rotate(angle, resample=Image.Resampling.BICUBIC)
    return mask.crop(mask.getbbox())


def _add_lines(canvas: Image.Image, rng: random.Random, *, count: int) -> None:
    """Thin lines from the left side to the right one."""
    draw = ImageDraw.Draw(canvas)
    for _ in range(count):
        ends = (0, rng.uniform(0, canvas.height), canvas.width, rng.uniform(0, canvas.height))
        draw.line(ends, fill=tuple(rng.randint(90, 190) for _ in range(3)), width=_SUPERSAMPLE)


def _grain(image: Image.Image, rng: random.Random) -> Image.Image:
    """Faint noise."""
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 6, (image.height, image.width, 1))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
