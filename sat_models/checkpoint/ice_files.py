"""icetk's files, which CogView2 and CogVideo share: where they lie, and what is to be fetched where one is absent.

Beside the weights, in the folder that holds those, in a folder `icetk` of either, in SAT_HOME, or where icetk itself
puts them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sat_models.checkpoint.painter_parts import places_around
from sat_models.checkpoint.pickles import load_file
from sat_models.config.image_tokens import ImageTokenConfig
from sat_models.errors import CheckpointError
from sat_models.processing.ice_image import IceImage
from sat_models.processing.icetk import IceText

TEXT_FILE, IMAGE_FILE = "ice_text.model", "ice_image.pt"
_CLOUD = "https://cloud.tsinghua.edu.cn/f"
SOURCES = {
    TEXT_FILE: f"{_CLOUD}/2c73ea6d3e7f4aed82ec/?dl=1",
    IMAGE_FILE: f"{_CLOUD}/ae2cd37af814429d875d/?dl=1",
    "cluster_label.npy": "https://github.com/THUDM/CogView2",
    "cluster_label2.npy": "https://github.com/THUDM/CogVideo (branch CogVideo)",
}
"""Where each file is fetched: the first two as icetk does, the clusters in the originals' repositories."""
_FOLDER, _OWN_FOLDER = "icetk", "~/.icetk_models"


def find_ice_file(step: Path, name: str) -> Path:
    """The path of a file of `SOURCES`.

    Args:
        step: folder of the weights.

    Raises:
        CheckpointError: it is nowhere; the message says what to fetch.
    """
    home = Path(os.environ.get("SAT_HOME") or "~/.sat_models").expanduser()
    for place in _places(step, home):
        if (place / name).is_file():
            return place / name
    raise CheckpointError(
        f"{name} is missing, which is not in the folder of the weights: fetch it from {SOURCES[name]} into "
        f"{step.resolve().parent} or {home / _FOLDER}"
    )


def _places(step: Path, home: Path) -> Iterator[Path]:
    for place in (*places_around(step), home):
        yield from (place, place / _FOLDER)
    yield Path(_OWN_FOLDER).expanduser()


def open_ice_text(step: Path, config: ImageTokenConfig) -> IceText:
    """Raises as `find_ice_file`, and InputError for a file of something else."""
    return IceText(find_ice_file(step, TEXT_FILE), image_codes=config.image_codes, vocab_size=config.vocab_size)


def open_ice_image(step: Path, config: ImageTokenConfig, *, device: torch.device, dtype: torch.dtype) -> IceImage:
    """Raises CheckpointError: absent, damaged, or with another number of codes than the model writes."""
    place = find_ice_file(step, IMAGE_FILE)
    content = load_file(place)
    weights = content.get("module") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointError(f"{place} holds no weights under 'module'; it is another file than icetk's {IMAGE_FILE}")
    image = IceImage(weights, device=device, dtype=dtype)
    if image.codes != config.image_codes:
        raise CheckpointError(f"{place} has {image.codes} codes; this model writes {config.image_codes}")
    return image


def read_clusters(step: Path, name: str, codes: int) -> Tensor:
    """Which cluster each code is in, [codes]. Raises CheckpointError: absent, damaged, or of other codes."""
    place = find_ice_file(step, name)
    try:
        labels = np.load(place, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(f"{place} is damaged ({error!s:.160}). Copy or download it again.") from error
    if labels.shape != (codes,) or labels.dtype.kind not in "iu" or int(labels.min()) < 0:
        raise CheckpointError(
            f"{place} holds {labels.dtype} {list(labels.shape)}; it must hold one number of a cluster for each of "
            f"{codes} codes"
        )
    return torch.from_numpy(labels.astype(np.int64))
