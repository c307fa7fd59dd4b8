"""Full-precision weights on their way in, or from file to file, made into quantised ones: one at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mixins.sat_compat import RowParallelLinear
from sat_models.checkpoint.memory import release_freed
from sat_models.models.common.quantisation import Quantisation, linears_to_quantise
from sat_models.models.common.quantised import (
    SCALE,
    Rows,
    bitsandbytes,
    block_size,
    quantise,
    quantised_form,
    row_maxima,
)

PartOf = Callable[[int], Rows]
"""One rank's part of a weight in full precision."""


class Quantiser:
    """Knows which weights of a model are quantised, and does it.

    Args:
        model: in full precision, on meta.
        settings: bits, and what is left out.
        size: number of ranks that the result is divided over, for a model that is whole.

    Raises:
        ConfigError: see `linears_to_quantise`.
        MissingPackageError: bitsandbytes is not installed.
    """

    def __init__(self, model: nn.Module, settings: Quantisation, size: int = 1) -> None:
        bitsandbytes()
        self.settings = settings
        self._linears = {f"{name}.weight": m for name, m in linears_to_quantise(model, settings, size).items()}

    def __contains__(self, key: str) -> bool:
        """True if the weight of this name is (still) to be quantised."""
        return key in self._linears

    def tensors(self, key: str, part: PartOf, rank: int, size: int) -> dict[str, Tensor]:
        """The weight of `rank` of `size` by its names in a quantised checkpoint.

        The scales of 8 bits are those of whole rows, so that the model is the same for any number of ranks.
        """
        linear, maxima = self._linears[key], None
        if self.settings.bits == 8 and size > 1 and isinstance(linear, RowParallelLinear):
            maxima = functools.reduce(torch.maximum, (row_maxima(part(r)) for r in range(size)))
        weight, scale = quantise(part(rank), self.settings.bits, block=block_size(linear), maxima=maxima)
        release_freed()
        return {key: weight, f"{key.removesuffix('weight')}{SCALE}": scale}

    def place(self, model: nn.Module, key: str, part: PartOf, rank: int, size: int) -> None:
        """Exchange one linear of `model` for its quantised form, filled, and forget it; its bias is left as it is."""
        name = key.removesuffix(".weight")
        layer = quantised_form(model.get_submodule(name), self.settings.bits)
        layer.fill(*self.tensors(key, part, rank, size).values())
        model.set_submodule(name, layer)
        del self._linears[key]

    def bytes_of(self, key: str) -> int:
        """Bytes of the whole weight and its scales, quantised."""
        linear = self._linears[key]
        values = linear.input_size * linear.output_size
        if self.settings.bits == 8:
            return values + 4 * linear.output_size
        return values // 2 + values // block_size(linear)
