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

from sat_models.config import ImagePlan, ImageProcessing

CLIP = ImageProcessing()
"""Stretched, bicubic, CLIP's mean and deviation."""

STRIP = 64
"""A picture this many times as long as thick is a strip; its pixels need not be those of the originals to the last."""
LONG = 16
"""Times the tower's side beyond which a strip is shortened."""
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_BAND_PIXELS = 2**22


def image_to_tensor(
    image: Image.Image, size: int, how: ImageProcessing = CLIP, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Pixels for a vision tower: [3, size, size], normalised.

    Args:
        image: of any mode and size.
        size: side in pixels.
        how: fit, resampling and normalisation, as in training.
        dtype: of the result; the arithmetic is fp32.
    """
    return normalised(FITS[how.fit](flatten(image), size, how), how).to(dtype)


def planned_pixels(image: Image.Image, plan: ImagePlan, how: ImageProcessing = CLIP) -> Tensor:
    """The pixels of an image for the tower: [T, 3, h, w] in fp32, tiles row by row, the overview last."""
    image, (columns, rows), (width, height) = flatten(image), plan.grid, plan.tile
    if plan.box is not None:
        canvas = placed(image, plan, how)
    elif plan.canvas[0] == plan.canvas[1] and plan.num_tiles == 1:
        canvas = FITS[how.fit](image, plan.canvas[0], how)
    else:
        canvas = stretched(image, plan.canvas, how)
    pixels = normalised(canvas, how)
    tiles = pixels.view(3, rows, height, columns, width).permute(1, 3, 0, 2, 4).reshape(-1, 3, height, width)
    if not plan.overview:
        return tiles
    return torch.cat((tiles, normalised(stretched(image, plan.tile, how), how)[None]))


def normalised(image: Image.Image, how: ImageProcessing = CLIP) -> Tensor:
    """RGB -> [3, H, W] fp32: to [0, 1], less the mean, by the deviation."""
    pixels_HWC = torch.from_numpy(np.array(image, dtype=np.uint8))
    pixels = pixels_HWC.permute(2, 0, 1).float().div(255)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (how.mean, how.std))
    return ((pixels - mean) / std).contiguous()


def resize(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """`image` in another (width, height): along its rows first, then along its columns, whatever Pillow prefers."""
    return image.resize((size[0], image.height), resample).resize(size, resample)


def stretched(image: Image.Image, size: int | tuple[int, int], how: ImageProcessing = CLIP) -> Image.Image:
    """A square of `size`, or a (width, height), whatever the sides were."""
    width, height = (size, size) if isinstance(size, int) else size
    resample = _RESAMPLING[how.resampling]
    if image.height > LONG * height and image.width * LONG < width:  # rows first would take `height` rows of `size`
        image = image.resize((image.width, height), resample)
    return resize(image, (width, height), resample)


def placed(image: Image.Image, plan: ImagePlan, how: ImageProcessing) -> Image.Image:
    """A canvas of the background's colour with the whole image in its box."""
    left, top, width, height = plan.box
    if plan.transposed:
        lying = stretched(image.transpose(Image.Transpose.TRANSPOSE), (height, width), how)
        content = lying.transpose(Image.Transpose.TRANSPOSE)
    else:
        content = stretched(image, (width, height), how)
    canvas = Image.new("RGB", plan.canvas, how.background)
    canvas.paste(content, (left, top))
    return canvas


def padded(image: Image.Image, size: int, how: ImageProcessing = CLIP) -> Image.Image:
    """A square of `size` with the whole picture in its middle, between bars of the background's colour."""
    resample = _RESAMPLING[how.resampling]
    image = _shortened(image, LONG * size, resample)
    side = max(image.size)
    if min(image.size) == side:
        return stretched(image, size, how)
    tall = Image.new("RGB", (size, side), how.background)  # the padded square after the pass along its rows
    if image.width == side:
        tall.paste(image.resize((size, image.height), resample), (0, (side - image.height) // 2))
    else:
        rows = max(1, _BAND_PIXELS // side)
        for top in range(0, side, rows):
            part = image.crop((0, top, image.width, min(top + rows, side)))
            band = Image.new("RGB", (side, part.height), how.background)
            band.paste(part, ((side - image.width) // 2, 0))
            tall.paste(band.resize((size, part.height), resample), (0, top))
    return tall.resize((size, size), resample)


def cropped(image: Image.Image, size: int, how: ImageProcessing = CLIP) -> Image.Image:
    """CLIP's own way: the shorter side to `size`, then the middle."""
    short = min(image.size)
    if max(image.size) > STRIP * short:  # only the middle of a strip is looked at
        kept = [min(side, STRIP * short) for side in image.size]
        left, top = ((side - part) // 2 for side, part in zip(image.size, kept, strict=True))
        image = image.crop((left, top, left + kept[0], top + kept[1]))
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = resize(image, (width, height), _RESAMPLING[how.resampling])
    return resized.crop((left, top, left + size, top + size))


def _shortened(image: Image.Image, longest: int, resample: Image.Resampling) -> Image.Image:
    """A strip whose longer side is brought to `longest`, its shape kept; any other picture as it is."""
    long, short = max(image.size), min(image.size)
    if long <= max(longest, STRIP * short):
        return image
    width, height = (max(1, round(side * longest / long)) for side in image.size)
    if image.width == long:
        return resize(image, (width, height), resample)
    return image.resize((image.width, height), resample).resize((width, height), resample)


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


FITS: dict[str, Callable[[Image.Image, int, ImageProcessing], Image.Image]] = {
    "stretch": stretched, "pad": padded, "crop": cropped,
}  # fmt: skip
"""Ways to bring an image to a square; `ImageProcessing.fit` names one."""
