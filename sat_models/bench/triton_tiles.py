"""The fastest tiles of the Triton products on a GPU: a walk from those of the table to better neighbours.

Legend: B rows, K inputs, M outputs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from sat_models import runtime
from sat_models.generation.steps.graphs import record_on_gpu
from sat_models.generation.steps.triton_language import can_launch_on
from sat_models.generation.steps.triton_products import Weight, product
from sat_models.generation.steps.triton_tuning import PRODUCTS, Tiles, product_tiles
from sat_models.models.common.quantised import quantise

_MOVED = 512 * 2**20
"""Bytes of the weights that a measurement goes through, far more than a cache of a GPU."""

_BLOCK = 64
_LEAST = Tiles(16, 16, 1, 1)
_LEAST_OF_ONE = Tiles(1, 64, 1, 1)
_MOST = Tiles(256, 4096, 16, 6)


def neighbours(tiles: Tiles, rows: int) -> Iterator[Tiles]:
    """Tiles with one number doubled or halved (one stage more or less), as the kernels take them for so many rows."""
    least = _LEAST_OF_ONE if rows == 1 else _LEAST
    for name in ("outputs", "columns", "warps", "stages"):
        value = getattr(tiles, name)
        for other in (value + 1, value - 1) if name == "stages" else (2 * value, value // 2):
            if getattr(least, name) <= other <= getattr(_MOST, name):
                yield replace(tiles, **{name: other})


def walk(seconds: Callable[[Tiles], float], start: Tiles, rows: int) -> dict[Tiles, float]:
    """Go to the best neighbour until none is better; what was measured on the way."""
    found = {start: seconds(start)}
    while True:
        best = min(found, key=found.__getitem__)
        new = [tiles for tiles in neighbours(best, rows) if tiles not in found]
        found |= {tiles: seconds(tiles) for tiles in new}
        if min(found, key=found.__getitem__) == best:
            return found


class ProductTimes:
    """Measures one product.

    Args:
        bits: of a weight: 16 (bf16), 8 or 4.
        rows, outputs, inputs: B, M and K.
        device: a GPU, or a CPU in Triton's interpreter.
        moved: bytes of all weights, each of which is read once in a measurement.
    """

    def __init__(
        self, bits: int, rows: int, outputs: int, inputs: int, device: torch.device, *, moved: int = _MOVED
    ) -> None:
        if not can_launch_on(device):
            raise ValueError(f"Triton cannot launch on {device}")
        self.bits, self.rows, self.device = bits, rows, device
        weight = torch.randn(outputs, inputs, device=device).bfloat16()
        one = Weight(weight)
        if bits < 16:
            codes, scales = quantise(weight, bits, block=_BLOCK)
            one = Weight(codes, scales, _BLOCK if bits == 4 else 0)
        count = max(1, moved // one.stored.nbytes)
        self._weights = [one._replace(stored=one.stored.clone()) for _ in range(count)]
        self._x = torch.randn(rows, inputs, device=device).bfloat16()
        self._out = self._x.new_empty(rows, outputs)
        self.bytes = one.stored.nbytes + (one.scales.nbytes if one.scales is not None else 0)

    def seconds(self, tiles: Tiles | None = None, repeats: int = 5) -> float:
        """Of one product; infinite if the GPU has no room for such tiles."""
        return self._timed(lambda weight: product(self._out, self._x, weight, tiles=tiles), repeats)

    def seconds_of_torch(self, repeats: int = 5) -> float:
        """Of torch's product with a bare weight."""
        return self._timed(lambda weight: torch.nn.functional.linear(self._x, weight.stored), repeats)

    def _timed(self, multiply: Callable[[Weight], object], repeats: int) -> float:
        def once() -> None:
            for weight in self._weights:
                multiply(weight)

        try:
            run = record_on_gpu(once, self.device) if self.device.type == "cuda" else once
        except Exception as error:  # Triton says in several ways that tiles do not fit
            if "resource" in f"{type(error).__name__} {error}".lower():
                return math.inf
            raise
        times = []
        for _ in range(repeats):
            runtime.wait_for(self.device)
            start = time.perf_counter()
            run()
            runtime.wait_for(self.device)
            times.append(time.perf_counter() - start)
        return min(times) / len(self._weights)


def report(outputs: int, inputs: int, device: torch.device, *, moved: int = _MOVED) -> Iterator[str]:
    """Lines of a Markdown table, as they are found; the last column is the line for `triton_tuning.PRODUCTS`."""
    yield "| weight, rows | table | best | torch, bf16 | for the table |\n| --- | --- | --- | --- | --- |"
    for bits, rows in PRODUCTS:
        times = ProductTimes(bits, rows, outputs, inputs, device, moved=moved)
        start = product_tiles(bits, rows)
        found = walk(times.seconds, start, rows)
        best = min(found, key=found.__getitem__)
        rates = [f"{times.bytes / found[tiles] / 1e9:.0f} GB/s" for tiles in (start, best)]
        usual = f"{times.bytes / times.seconds_of_torch() / 1e9:.0f} GB/s" if bits == 16 else ""
        line = f"({bits}, {rows}): Tiles({best.outputs}, {best.columns}, {best.warps}, {best.stages}),"
        yield f"| {bits} bits, {rows} | {rates[0]} | {rates[1]} | {usual} | `{line}` |"
