"""Linears that are one in Hugging Face's model and several here, as adapters have them.

SAT's LoRA gives each block of a weight (queries, keys, values; gate and up) matrices of its own. PEFT wraps the one
linear that they are there: A of all blocks one below the other [n·r, inputs], and a B [outputs, n·r] that is zero
outside of each block's own rows and columns. The product is the same. Which rows those are stands in the safetensors
header of what is written here, so that the way back gives the same matrices bit for bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_models.errors import CheckpointError

HEADER = "sat_adapter"
"""Under which a safetensors file of PEFT's keeps what its form cannot say: `extra` and `blocks` (linear -> rows)."""

Pair = tuple[Tensor, Tensor]
"""A [r, inputs] and B [outputs, r] of a block."""


def joined(blocks: Sequence[Pair]) -> Pair:
    """One pair out of those of the blocks."""
    if len(blocks) == 1:
        return blocks[0]
    return torch.cat([a for a, _ in blocks]), torch.block_diag(*(b for _, b in blocks))


def split(a: Tensor, b: Tensor, rows: Sequence[int], what: str) -> list[Pair]:
    """The inverse.

    Args:
        rows: of each block.
        what: the linear, for the message.

    Raises:
        CheckpointError: the matrices are none that were joined so.
    """
    rank, left = divmod(len(a), len(rows))
    if left or sum(rows) != len(b) or b[~torch.block_diag(*(torch.ones(block, rank) for block in rows)).bool()].any():
        raise CheckpointError(
            f"the header of the adapter says that {what} has blocks of {', '.join(map(str, rows))} rows, but its "
            f"matrices are none of such blocks ({list(a.shape)}, {list(b.shape)}). Copy it again."
        )
    starts = range(0, len(a), rank)
    own = [part[:, first : first + rank].contiguous() for part, first in zip(b.split(list(rows)), starts, strict=True)]
    return list(zip(a.split(rank), own, strict=True))


def read_header(file: Path) -> dict[str, Any]:
    """What this project wrote into the header of a safetensors file; empty in one of PEFT's own."""
    from safetensors import safe_open

    if file.suffix != ".safetensors":
        return {}
    with safe_open(file, framework="pt") as content:
        return json.loads((content.metadata() or {}).get(HEADER, "{}"))


def write_header(extra: Mapping[str, Any], blocks: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """The header of a file that is written here."""
    return {"format": "pt", HEADER: json.dumps({"extra": dict(extra), "blocks": dict(blocks)})}
