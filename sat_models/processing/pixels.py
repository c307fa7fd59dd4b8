"""RGB pictures of any size -> normalised pixels of the size that a vision tower takes.

The arithmetic (bicubic to a square, [0, 1], CLIP mean and standard deviation) is the one the released weights were
trained with and is pinned by the golden data. Pillow's `resize` works in two passes, whose order changes pixels: up to
version 12 it goes along the rows first, from 13 on by shape. Here each pass is a call of its own, rows first, so that
the pixels are the same under every version.

Memory and time follow the picture's own pixels and the square of `size`: bars are never built larger than needed, and a
strip (very long and very thin) is shrunk along its length before anything else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

STRIP = 64
"""A picture this many times as long as thick is a strip; its pixels need not be those of the originals to the last."""
LONG = 16
"""Times the tower's side beyond which a strip is shortened."""
_BAR = tuple(int(channel * 255) for channel in CLIP_MEAN)
_BAND_PIXELS = 2**22


def image_to_tensor(
    image: Image.Image, size: int, *, fit: str = "stretch", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Pixels for a vision tower: [3, size, size], normalised.

    Args:
        image: of any mode and size.
        size: side in pixels.
        fit: "stretch" to a square, "pad" to one with CLIP's mean colour, or "crop" the middle; as in training.
        dtype: of the result; the arithmetic is fp32.

    Raises:
        ValueError: unknown `fit`.
    """
    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}; allowed: {', '.join(FITS)}")
    pixels_HWC = torch.from_numpy(np.array(FITS[fit](flatten(image), size), dtype=np.uint8))
    pixels = pixels_HWC.permute(2, 0, 1).float().div(255)
    mean = torch.tensor(CLIP_MEAN).view(3, 1, 1)
    std = torch.tensor(CLIP_STD).view(3, 1, 1)
    return ((pixels - mean) / std).contiguous().to(dtype)


def resize(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """`image` in another (width, height): along its rows first, then along its columns, whatever Pillow prefers."""
    return image.resize((size[0], image.height), resample).resize(size, resample)


def stretched(image: Image.Image, size: int) -> Image.Image:
    """A square of `size`, whatever the sides were."""
    if image.height > LONG * size and image.width * LONG < size:  # rows first would take `height` rows of `size`
        image = image.resize((image.width, size), Image.Resampling.BICUBIC)
    return resize(image, (size, size))


def padded(image: Image.Image, size: int) -> Image.Image:
    """A square of `size` with the whole picture in its middle, between bars of CLIP's mean colour."""
    image = _shortened(image, LONG * size)
    side = max(image.size)
    if min(image.size) == side:
        return stretched(image, size)
    tall = Image.new("RGB", (size, side), _BAR)  # the padded square after the pass along its rows
    if image.width == side:
        tall.paste(image.resize((size, image.height), Image.Resampling.BICUBIC), (0, (side - image.height) // 2))
    else:
        rows = max(1, _BAND_PIXELS // side)
        for top in range(0, side, rows):
            part = image.crop((0, top, image.width, min(top + rows, side)))
            band = Image.new("RGB", (side, part.height), _BAR)
            band.paste(part, ((side - image.width) // 2, 0))
            tall.paste(band.resize((size, part.height), Image.Resampling.BICUBIC), (0, top))
    return tall.resize((size, size), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, size: int) -> Image.Image:
    """CLIP's own way: the shorter side to `size`, then the middle."""
    short = min(image.size)
    if max(image.size) > STRIP * short:  # only the middle of a strip is looked at
        kept = [min(side, STRIP * short) for side in image.size]
        left, top = ((side - part) // 2 for side, part in zip(image.size, kept, strict=True))
        image = image.crop((left, top, left + kept[0], top + kept[1]))
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return resize(image, (width, height)).crop((left, top, left + size, top + size))


def _shortened(image: Image.Image, longest: int) -> Image.Image:
    """A strip whose longer side is brought to `longest`, its shape kept; any other picture as it is."""
    long, short = max(image.size), min(image.size)
    if long <= max(longest, STRIP * short):
        return image
    width, height = (max(1, round(side * longest / long)) for side in image.size)
    if image.width == long:
        return resize(image, (width, height))
    lower = image.resize((image.width, height), Image.Resampling.BICUBIC)
    return lower.resize((width, height), Image.Resampling.BICUBIC)


def flatten(image: Image.Image) -> Image.Image:
    """Any mode -> RGB: wide grey scaled to 8 bits, transparency laid on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_wide_grey(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _wide_grey(image: Image.Image) -> np.ndarray:
    """Grey of 16 or 32 bits or floats as uint8 [H, W].

    16 bit: 0-65535. 32-bit integers: 0-255 if nothing is above, else 0-65535. Floats: 0-1 if nothing is above, else
    0-255.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    peak = values.max(initial=0)
    if image.mode.startswith("I;16"):
        top = 65535.0
    elif image.mode == "I":
        top = 255.0 if peak <= 255 else 65535.0
    else:
        top = 1.0 if peak <= 1 else 255.0
    return np.clip(np.rint(values * (255.0 / top)), 0, 255).astype(np.uint8)


FITS: dict[str, Callable[[Image.Image, int], Image.Image]] = {"stretch": stretched, "pad": padded, "crop": cropped}
"""Ways to bring a picture to a square; a model's `SequenceForm.fit` names one."""
