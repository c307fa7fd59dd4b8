"""Pictures from anywhere -> RGB."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps

from sat_models.errors import InputError
from sat_models.processing.fetch import MAX_BYTES, TIMEOUT, data_url, download
from sat_models.processing.pixels import flatten

logger = logging.getLogger(__name__)

MAX_PIXELS = 89_478_485
"""Width x height a picture may have; Pillow's own limit."""

_PNG = b"\x89PNG\r\n\x1a\n"

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | np.ndarray | Image.Image


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
        source: path, http(s) or `data:` URL (see `kind_of`), encoded bytes or an open binary file that holds them,
            `PIL.Image`, or pixels as a uint8 array: [H, W] grey, [H, W, 3] RGB, [H, W, 4] RGBA.
        max_pixels: limit on width x height, checked from the header before anything is decoded.
        max_bytes: limit on the encoded size of bytes, `data:` URLs and downloads.
        timeout: seconds for a download.
        allowed_hosts: for a server that takes URLs from strangers (and opens no paths for them): see `fetch.download`.
        formats: Pillow's names of the file types to read, such as ("PNG", "JPEG"); None: all it knows.

    Raises:
        InputError: missing, unreadable, truncated, too large, or not a picture; the message names it and the remedy.
    """
    if isinstance(source, np.ndarray):
        source = _from_pixels(source)
    if isinstance(source, Image.Image):
        return _to_rgb(source, name=getattr(source, "filename", "") or "the given picture", max_pixels=max_pixels)
    if callable(getattr(source, "read", None)):
        source = _read(source, max_bytes)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(bytes(source), f"{len(source)} bytes", max_pixels, max_bytes, formats)
    if not isinstance(source, (str, os.PathLike)) or not os.fspath(source):
        raise InputError(
            f"A picture was given as {source!r:.80} ({type(source).__name__}). Allowed: a path, an http(s) or data: "
            f"URL, encoded bytes, an open binary file, a uint8 array or a PIL.Image."
        )
    kind = kind_of(source)
    if kind == "data":
        return _decode(data_url(str(source).strip()), "data: URL", max_pixels, max_bytes, formats)
    if kind == "url":
        url = str(source).strip()
        data = download(url, max_bytes=max_bytes, timeout=timeout, allowed_hosts=allowed_hosts)
        return _decode(data, url, max_pixels, max_bytes, formats)
    return _open_path(Path(os.fspath(source)).expanduser(), max_pixels, formats)


def kind_of(source: str | os.PathLike[str]) -> Literal["data", "url", "path"]:
    """The kind of a picture's text: a `data:` URL, another URL (`scheme://…`), or a path of this machine.

    The one place that decides, so that nobody who refuses paths lets through what somebody else opens as one. Spaces
    around a URL do not count, as in browsers; a `Path` is a path whatever it looks like.
    """
    if not isinstance(source, str):
        return "path"
    text = source.strip()
    if text[:5].lower() == "data:":
        return "data"
    return "url" if "://" in text else "path"


def _from_pixels(pixels: np.ndarray) -> Image.Image:
    """A picture of an array's values."""
    channels = {2: "L", 3: {3: "RGB", 4: "RGBA"}.get(pixels.shape[-1] if pixels.ndim else 0)}.get(pixels.ndim)
    if pixels.dtype != np.uint8 or channels is None:
        raise InputError(
            f"A picture was given as an array of {pixels.dtype} {list(pixels.shape)}. Allowed: uint8 (0-255) of the "
            "shape [H, W], [H, W, 3] or [H, W, 4]; scale and permute it, or give a PIL.Image."
        )
    if not pixels.size:
        raise InputError(f"A picture was given as an array of {list(pixels.shape)}: it is empty.")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _read(file: BinaryIO, max_bytes: int) -> bytes:
    """The content of an open file, from where it stands and is left; a byte more than allowed tells too much."""
    try:
        start = file.tell() if file.seekable() else None
        data = file.read(max_bytes + 1)
        if start is not None:
            file.seek(start)
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"The open file {file!r:.80} cannot be read ({error}). Open it with open(path, 'rb')."
        ) from error
    if data == b"" and start:
        raise InputError(f"The open file {file!r:.80} stands at its end ({start} bytes). Call seek(0) first.")
    if not isinstance(data, bytes):
        raise InputError(f"{file!r:.80} gives text, no bytes. Open it with open(path, 'rb').")
    return data


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
        return _to_rgb(_open(stream, name, formats), name=name, max_pixels=max_pixels)
    except InputError:
        slim = _without_text(stream)
        if slim is None:
            raise
    return _to_rgb(_open(slim, name, formats), name=name, max_pixels=max_pixels)


def _open(stream: io.BufferedIOBase, name: str, formats: Sequence[str] | None) -> Image.Image:
    try:
        return Image.open(stream, formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"Picture '{name}' is too large ({error}). Give a smaller copy.") from error
    except Image.UnidentifiedImageError as error:
        known = f"of the types {', '.join(formats)}" if formats else "that Pillow can read"
        raise InputError(f"'{name}' is not a picture {known}. Convert it to PNG or JPEG.") from error
    except Exception as error:  # damaged headers raise anything from struct.error to SyntaxError
        raise InputError(
            f"Picture '{name}' has a damaged header ({_reason(error)}). Get or export it again."
        ) from error


def _without_text(stream: io.BufferedIOBase) -> io.BytesIO | None:
    """A PNG without its notes (prompts, workflows, editing history), which Pillow refuses to read beyond a megabyte.

    None for whatever is no PNG, or has no notes.
    """
    stream.seek(0)
    if stream.read(len(_PNG)) != _PNG:
        return None
    kept, dropped = [_PNG], False
    while len(head := stream.read(8)) == 8:
        body = stream.read(int.from_bytes(head[:4]) + 4)  # its checksum included
        if head[4:] in (b"tEXt", b"zTXt", b"iTXt"):
            dropped = True
        else:
            kept += [head, body]
    return io.BytesIO(b"".join(kept)) if dropped else None


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
    return flatten(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says; damaged EXIF data is passed over."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:
        logger.warning("EXIF data of a picture cannot be read (%s); its orientation is taken as it is", _reason(error))
        return image.copy()


def _reason(error: BaseException) -> str:
    """One line of an exception."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
