"""Pictures from anywhere -> RGB -> normalised pixels.

The pixel arithmetic (bicubic to a square, [0, 1], CLIP mean and standard deviation) is the one the released weights
were trained with and is pinned by the golden data.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import InputError
from .fetch import MAX_BYTES, TIMEOUT, data_url, download

logger = logging.getLogger(__name__)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

MAX_PIXELS = 89_478_485
"""Width x height a picture may have; Pillow's own limit."""

ImageSource = str | os.PathLike[str] | bytes | Image.Image


def load_image(
    source: ImageSource,
    *,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    timeout: float = TIMEOUT,
    allowed_hosts: Collection[str] | None = None,
    formats: Sequence[str] | None = None,
) -> Image.Image:
    """A picture as RGB.

    Takes any file type Pillow reads: palettes, grey, 16 bit (scaled to 8), CMYK, the first frame of an animation.
    Transparent parts are laid on white, and the EXIF orientation is applied.

    Args:
        source: path, `PIL.Image`, encoded bytes, http(s) URL, or `data:` URL.
        max_pixels: limit on width x height, checked from the header before anything is decoded.
        max_bytes: limit on the encoded size of bytes, `data:` URLs and downloads.
        timeout: seconds for a download.
        allowed_hosts: for a server that takes URLs from strangers (and opens no paths for them): see `fetch.download`.
        formats: Pillow's names of the file types to read, such as ("PNG", "JPEG"); None: all it knows.

    Raises:
        InputError: missing, unreadable, truncated, too large, or not a picture; the message names it and the remedy.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, name=getattr(source, "filename", "") or "the given picture", max_pixels=max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), f"{len(source)} bytes", max_pixels, max_bytes, formats)
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise InputError(
            f"A picture was given as {source!r:.80} ({type(source).__name__}). Allowed: a path, an http(s) URL, "
            f"encoded bytes or a PIL.Image."
        )
    text = os.fspath(source)
    if isinstance(source, str) and text[:5].lower() == "data:":
        return _decode(data_url(text), "data: URL", max_pixels, max_bytes, formats)
    if isinstance(source, str) and "://" in text:
        data = download(text, max_bytes=max_bytes, timeout=timeout, allowed_hosts=allowed_hosts)
        return _decode(data, text, max_pixels, max_bytes, formats)
    return _open_path(Path(text).expanduser(), max_pixels, formats)


def image_to_tensor(
    image: Image.Image, size: int, *, fit: str = "stretch", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Pixels for a vision tower: [3, size, size], normalised.

    Args:
        image: RGB of any size.
        size: side in pixels.
        fit: "stretch" to a square, "pad" to one with CLIP's mean colour, or "crop" the middle; as in training.
        dtype: of the result; the arithmetic is fp32.

    Raises:
        ValueError: unknown `fit`.
    """
    image = image if image.mode == "RGB" else _to_rgb(image, name="the given picture", max_pixels=MAX_PIXELS)
    if fit not in _FITS:
        raise ValueError(f"fit is {fit!r}; allowed: {', '.join(_FITS)}")
    resized = _FITS[fit](image, size)
    pixels_HWC = torch.from_numpy(np.array(resized, dtype=np.uint8))
    pixels = pixels_HWC.permute(2, 0, 1).float().div(255)
    mean = torch.tensor(CLIP_MEAN).view(3, 1, 1)
    std = torch.tensor(CLIP_STD).view(3, 1, 1)
    return ((pixels - mean) / std).contiguous().to(dtype)


def pad_to_square(image: Image.Image) -> Image.Image:
    """An RGB picture in the middle of a square whose bars have CLIP's mean colour."""
    side = max(image.size)
    if min(image.size) == side:
        return image
    square = Image.new("RGB", (side, side), tuple(int(channel * 255) for channel in CLIP_MEAN))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _stretched(image: Image.Image, size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _padded(image: Image.Image, size: int) -> Image.Image:
    return _stretched(pad_to_square(image), size)


def _cropped(image: Image.Image, size: int) -> Image.Image:
    """CLIP's own way: the shorter side to `size`, then the middle."""
    short = min(image.size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))


_FITS = {"stretch": _stretched, "pad": _padded, "crop": _cropped}


def _open_path(path: Path, max_pixels: int, formats: Sequence[str] | None) -> Image.Image:
    """A picture from a file."""
    try:
        with path.open("rb") as file:
            return _decode_stream(file, str(path), max_pixels, formats)
    except FileNotFoundError:
        raise InputError(f"Picture '{path}' does not exist. Give the path of a file or an http(s) URL.") from None
    except IsADirectoryError:
        raise InputError(f"Picture '{path}' is a folder. Give the path of one file.") from None
    except (PermissionError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"Picture '{str(path)[:200]}' cannot be opened ({error}). Check the path and its rights."
        ) from error


def _decode(data: bytes, name: str, max_pixels: int, max_bytes: int, formats: Sequence[str] | None) -> Image.Image:
    """A picture from memory."""
    if len(data) > max_bytes:
        raise InputError(f"Picture ({name}) has {len(data)} bytes, more than {max_bytes}. Give a smaller copy.")
    return _decode_stream(io.BytesIO(data), name, max_pixels, formats)


def _decode_stream(stream: io.BufferedIOBase, name: str, max_pixels: int, formats: Sequence[str] | None) -> Image.Image:
    """Opens (header only), checks the size, then decodes."""
    try:
        opened = Image.open(stream, formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"Picture '{name}' is too large ({error}). Give a smaller copy.") from error
    except Image.UnidentifiedImageError as error:
        known = f"of the types {', '.join(formats)}" if formats else "that Pillow can read"
        raise InputError(f"'{name}' is not a picture {known}. Convert it to PNG or JPEG.") from error
    except Exception as error:  # damaged headers raise anything from struct.error to SyntaxError
        raise InputError(
            f"Picture '{name}' has a damaged header ({_reason(error)}). Get or export it again."
        ) from error
    return _to_rgb(opened, name=name, max_pixels=max_pixels)


def _to_rgb(image: Image.Image, *, name: str, max_pixels: int) -> Image.Image:
    """Size check, decoding, orientation, 8-bit RGB; leaves `image` as it was."""
    width, height = image.size
    if width * height > max_pixels:
        raise InputError(
            f"Picture '{name}' has {width} x {height} = {width * height} pixels; at most {max_pixels} are read. "
            f"Give a smaller copy (the model sees at most about 1.3 million)."
        )
    if width * height == 0:
        raise InputError(f"Picture '{name}' is empty ({width} x {height}). Give one with at least one pixel.")
    try:
        image.load()
    except Exception as error:  # truncated or damaged data raises OSError, SyntaxError, struct.error, ...
        raise InputError(
            f"Picture '{name}' is damaged or cut off ({_reason(error)}). Get or export it again."
        ) from error
    return _flatten(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; damaged EXIF data is passed over."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:
        logger.warning("EXIF data of a picture cannot be read (%s); its orientation is taken as it is", _reason(error))
        return image


def _flatten(image: Image.Image) -> Image.Image:
    """Any mode -> RGB: wide grey scaled to 8 bits, transparency laid on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
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


def _reason(error: BaseException) -> str:
    """One line of an exception."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
