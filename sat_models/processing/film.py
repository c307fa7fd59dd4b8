"""Films: frames in memory, and as files: mp4, GIF, or a folder of frames.

Legend: T frames, H and W in pixels.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sat_models.config import read_json
from sat_models.errors import ConfigError, InputError, MissingPackageError
from sat_models.files import draft_of, sync_folder, whole_file, write_json
from sat_models.processing.image import load_image

FILM_SUFFIXES = (".mp4", ".gif")
MOST_FPS = 240
_ABOUT, _FRAME = "film.json", "{:04d}.png"
"""In a folder of frames: what it holds besides them, and how they are called, counted from 1."""
_SHORTEST = 2
"""Hundredths of a second that a frame of a GIF is shown at least; browsers slow down what is shorter."""
_BT709 = 1
"""The number of ITU-R BT.709 in the tables of primaries, transfer and matrix of ITU-T H.273."""
_LIMITED = 1
"""In FFmpeg's table of ranges: 16 … 235."""


@dataclass(frozen=True, eq=False)
class Film:
    """Frames in the order in which they are shown.

    Attributes:
        frames: [T, H, W, 3], uint8, RGB.
        fps: frames a second.

    Raises:
        InputError: an array of another kind, no frame, or an impossible `fps`.
    """

    frames: np.ndarray
    fps: float

    def __post_init__(self) -> None:
        frames = self.frames
        if not (isinstance(frames, np.ndarray) and frames.dtype == np.uint8 and frames.ndim == 4 and frames.size):
            kind = f"{frames.dtype} {list(frames.shape)}" if isinstance(frames, np.ndarray) else type(frames).__name__
            raise InputError(f"the frames of a film are {kind}; they must be uint8 [frames, height, width, 3]")
        if frames.shape[-1] != 3:
            raise InputError(f"the frames of a film are {list(frames.shape)}; the last number must be 3, for RGB")
        check_fps(self.fps)

    @classmethod
    def of_images(cls, images: Sequence[Image.Image], fps: float) -> Film:
        """Of images of one size. Raises InputError for several sizes or none."""
        if len(sizes := {image.size for image in images}) != 1:
            raise InputError(f"{len(images)} images of {len(sizes)} sizes were given; a film takes frames of one size")
        return cls(np.stack([np.asarray(image.convert("RGB")) for image in images]), fps)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.frames.shape[2], self.frames.shape[1]

    def images(self) -> list[Image.Image]:
        """The frames, apart."""
        return [Image.fromarray(frame) for frame in self.frames]

    def save(self, place: str | Path) -> Path:
        """Write a file whose name ends in .mp4 or .gif, or a new folder with a PNG of each frame; whole or not at all.

        Returns:
            Where it lies.

        Raises:
            ConfigError: another ending, or a place where nothing can be written.
            MissingPackageError: an mp4 without PyAV.
        """
        place = film_place(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        suffix = place.suffix.lower()
        if not suffix:
            _write_folder(self, place)
            return place
        with whole_file(place) as draft:
            (_write_mp4 if suffix == ".mp4" else _write_gif)(self, draft)
        return place


def check_fps(fps: object) -> None:
    """Raises InputError for what cannot be a number of frames a second."""
    if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps <= MOST_FPS:
        raise InputError(f"fps is {fps!r:.40}; it must be a number of frames a second above 0, at most {MOST_FPS}")


def film_place(place: str | Path) -> Path:
    """Where a film is to lie, seen before any work.

    Raises:
        ConfigError: a file of another kind, a folder that holds something, or a place inside a file.
        MissingPackageError: an mp4 without PyAV.
    """
    place = Path(place).expanduser()
    suffix = place.suffix.lower()
    if suffix and suffix not in FILM_SUFFIXES:
        raise ConfigError(
            f"{place}: a film ends in {' or '.join(FILM_SUFFIXES)}, or is a folder (a name without a dot)"
        )
    if place.is_dir() and (suffix or any(place.iterdir())):
        raise ConfigError(f"{place} is a folder already; name another place for the film")
    if not suffix and place.is_file():
        raise ConfigError(f"{place} is a file already; name another folder, or a file ending in .mp4 or .gif")
    parent = next(parent for parent in place.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise ConfigError(f"{place} cannot be written: {parent} is a file; name another place")
    if suffix == ".mp4":
        require_av()
    return place


def read_film(place: str | Path) -> Film:
    """A film from a file that PyAV reads (mp4 and others), or from a folder as `Film.save` writes it.

    Raises:
        InputError: unreadable, or without frames.
        MissingPackageError: a file without PyAV.
    """
    place = Path(place).expanduser()
    if place.is_dir():
        if not (place / _ABOUT).is_file():
            raise InputError(f"{place} holds no {_ABOUT}, which says how many frames a second a film has")
        fps = read_json(place / _ABOUT).get("fps")
        return Film.of_images([load_image(file) for file in sorted(place.glob("*.png"))], fps)
    av = require_av()
    try:
        with av.open(str(place)) as file:
            rate = file.streams.video[0].average_rate if file.streams.video else None
            frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)] if rate else []
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"'{place}' cannot be read as a film: {error.strerror or error}") from error
    if not frames:
        raise InputError(f"'{place}' holds no frames; name a film")
    return Film(np.stack(frames), float(rate))


def require_av() -> Any:
    """PyAV. Raises MissingPackageError."""
    try:
        import av
    except ImportError as error:
        raise MissingPackageError(
            "av", "film", "a film as mp4 (a GIF and a folder of frames do not need it)"
        ) from error
    return av


def _write_mp4(film: Film, place: Path) -> None:
    """H.264 with colours at half the resolution, which every player and browser shows; its sides are even: an odd last
    row or column is shown twice."""
    av = require_av()
    frames = np.pad(film.frames, [(0, 0), *((0, side % 2) for side in film.frames.shape[1:3]), (0, 0)], mode="edge")
    with av.open(str(place), "w", format="mp4", options={"movflags": "+faststart"}) as file:
        stream = file.add_stream(
            "libx264", rate=Fraction(film.fps).limit_denominator(1001), options={"crf": "17", "preset": "medium"}
        )
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=_BT709)
            frame.colorspace = _BT709
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def _write_gif(film: Film, place: Path) -> None:
    """Endless; its times are whole hundredths of a second, so each frame ends as near to its time as they allow."""
    step = max(100 / film.fps, _SHORTEST)
    ends = [round(number * step) for number in range(len(film.frames) + 1)]
    times = [10 * (end - start) for start, end in itertools.pairwise(ends)]
    first, *others = film.images()
    first.save(place, format="GIF", save_all=True, append_images=others, duration=times, loop=0)


def _write_folder(film: Film, place: Path) -> None:
    draft = draft_of(place)
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        for number, image in enumerate(film.images(), start=1):
            image.save(draft / _FRAME.format(number))
        write_json(draft / _ABOUT, {"frames": len(film.frames), "fps": film.fps})
        draft.rename(place)  # over an empty folder, too
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(place.parent)
