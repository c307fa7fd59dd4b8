"""Reading `.pt` files: memory-mapped, and without ever running code from them."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from sat_models.config import LatentModelConfig
from sat_models.errors import CheckpointError

logger = logging.getLogger(__name__)

_AGAIN = "Copy or download it again."
_ENGINE_PREFIX = LatentModelConfig.SAT_PREFIX


def _allowed() -> list[Any]:
    """Classes in training files besides tensors (random states, parsed arguments): plain data, none of it runs code."""
    reconstruct, scalar = numpy._core.multiarray._reconstruct, numpy._core.multiarray.scalar
    names = [(reconstruct, "numpy.core.multiarray._reconstruct"), (scalar, "numpy.core.multiarray.scalar")]
    dtypes = [cls for name, cls in vars(numpy.dtypes).items() if name.endswith("DType")]
    return [*names, reconstruct, scalar, numpy.ndarray, numpy.dtype, *dtypes, argparse.Namespace]


def load_file(path: Path) -> Any:
    """The content of a `.pt` file, tensors memory-mapped on the CPU.

    Raises:
        CheckpointError: damaged, not a checkpoint, or one that asks to run code.
    """
    mapped = _check_header(path)
    try:
        with torch.serialization.safe_globals(_allowed()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refusal(path, str(error))) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is damaged ({reason[:200]}). {_AGAIN}") from error


def _check_header(path: Path) -> bool:
    """True if the file can be memory-mapped (torch's zip form). Raises CheckpointError for what is no checkpoint."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if not head:
        raise CheckpointError(f"{path} is empty. {_AGAIN}")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights. Run 'git lfs pull' in its repository.")
    if zipfile.is_zipfile(path):
        return True
    if head.startswith(b"PK"):
        raise CheckpointError(f"{path} is cut off: its end is missing ({path.stat().st_size} bytes). {_AGAIN}")
    logger.info("%s is in torch's old file format, which cannot be memory-mapped", path)
    return False


def _refusal(path: Path, message: str) -> str:
    wanted = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|class)[^\n]*?([\w.]+\.[\w.]+)", message)
    if wanted:
        name = wanted[1] or wanted[2]
        return (
            f"{path} was refused: reading it would call '{name}', which is no weight. A pickle can run any code, so "
            "only tensors and plain data are read. Get the weights from a source you trust, or save them again as "
            "torch.save({'module': state_dict}, path)."
        )
    reason = message.strip().splitlines()[-1] if message.strip() else "unreadable pickle"
    return f"{path} is damaged or no torch checkpoint ({reason[:200]}). {_AGAIN}"


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name: key "module" of a SAT file, or a bare state dict.

    Whatever else training wrote into it (random states, counters) is dropped. The file of a diffusion engine gives the
    weights of its transformer, under the names that they have there.

    Raises:
        CheckpointError: unreadable, or it holds no weights.
    """
    content = load_file(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dict of weights")
    weights = content.get("module", content)
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: key 'module' holds a {type(weights).__name__}, not a dict of weights")
    odd = [str(name) for name, value in weights.items() if not isinstance(value, Tensor)]
    if odd or not weights:
        found = f"its entries {', '.join(odd[:5])} are no tensors" if odd else "it is empty"
        raise CheckpointError(f"{path} holds no weights: {found}. SAT files have them under key 'module'.")
    inside = {k.removeprefix(_ENGINE_PREFIX): v for k, v in weights.items() if k.startswith(_ENGINE_PREFIX)}
    return inside or weights
