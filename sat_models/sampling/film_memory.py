"""How much memory a film takes, estimated before any work."""

from __future__ import annotations

import torch

from sat_models.config import FilmConfig
from sat_models.errors import InputError

_VECTORS_OF_A_LAYER = 14
"""Of the width of the model and for each token: the tokens, their normed and moved copy, queries, keys, values and what
is made of them, the inside of the MLP (4), and copies of some; most are there in the MLP."""
_WIDEST = 128 * 4
"""Numbers for each pixel of a piece that is being decoded: the channels of the last level, and copies of them."""
_FRAMES_OF_A_PIECE = 9


def film_bytes(config: FilmConfig, frames: int, size: tuple[int, int], dtype: torch.dtype) -> int:
    """The larger of what denoising (two rows, for guidance) and decoding take at a time, besides the weights. An
    estimate."""
    width, height = size
    times, _, rows, columns = config.film_shape(frames, width, height)
    tokens = config.text_length + times * rows * columns // (config.patch_frames * config.patch_size**2)
    each = dtype.itemsize
    denoising = 2 * tokens * config.hidden_size * _VECTORS_OF_A_LAYER * each
    decoding = min(_FRAMES_OF_A_PIECE, frames) * width * height * _WIDEST * max(each, 2)
    return max(denoising, decoding + frames * width * height * 3)


def check_room(config: FilmConfig, frames: int, size: tuple[int, int], dtype: torch.dtype, free: int | None) -> None:
    """Raise InputError for a film that does not fit into the bytes that are free; None: nobody knows how many."""
    wanted = film_bytes(config, frames, size, dtype)
    if free is not None and wanted > free:
        raise InputError(
            f"a film of {frames} frames of {size[0]}x{size[1]} takes about {wanted / 1e9:.1f} GB in "
            f"{str(dtype).removeprefix('torch.')} besides its model, and {free / 1e9:.1f} GB are free: take fewer "
            "frames, a smaller size, or bfloat16 (--bf16)"
        )
