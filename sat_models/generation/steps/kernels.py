"""A decode step on a CPU through the C kernels of `native`: at the speed of memory.

Legend: B rows, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mixins.kv_cache import KVStore
from sat_models.generation.steps.flat import TokenStep, has_room
from sat_models.generation.steps.native import MAX_HEAD_DIM, TokenKernels, load
from sat_models.generation.steps.products import Gate, Product, Products, QuantisedGate, QuantisedProduct

MAX_ROWS = 32
"""With more, torch's products in fp32 are as fast or faster (`scripts/measure_kernels.py`)."""


class LayerProducts(NamedTuple):
    """Those of one layer, in the order of a token."""

    mix: Product
    dense: Product
    gate: Gate
    down: Product


class KernelStep:
    """Called like the `TokenStep` that it stands for, which takes over what is not made for the kernels.

    In fp32 and in bf16, with linears in that dtype or in 8 or 4 bits. In bf16 it rounds where torch's operators do, but
    for the weights of attention, which stay in fp32.

    Args:
        step: one for which `of` did not say None.
        kernels: the loaded library.
        products: of each layer.
        head: the output projection.

    Attributes:
        reads_bytes: whether linears of its layers are quantised.
    """

    def __init__(
        self, step: TokenStep, kernels: TokenKernels, products: Sequence[LayerProducts], head: Product
    ) -> None:
        self._step, self._kernels = step, kernels
        # Detached, so that this memory lives as long as its address is used.
        self._layers = [
            (layer.norm.weight.detach(), layer.norm.variance_epsilon, layer.norm_again.weight.detach(),
             layer.norm_again.variance_epsilon, *own)
            for layer, own in zip(step.layers, products, strict=True)
        ]  # fmt: skip
        self.reads_bytes = any(isinstance(part, QuantisedGate | QuantisedProduct) for own in products for part in own)
        self._words, self._head = step.words.detach(), head
        self._last_norm, self._last_epsilon = step.last_norm.weight.detach(), step.last_norm.variance_epsilon
        self._sizes = len(self._last_norm), products[0].mix.outputs, products[0].gate.outputs
        self._normed = self._mixed = self._context = self._inner = self._scores = torch.empty(0, 0)

    @classmethod
    def of(cls, step: TokenStep) -> KernelStep | None:
        """None where the kernels are not there, or were not made for such a model."""
        if not step.has_bare_parts("cpu", (torch.float32, torch.bfloat16)):
            return None
        if step.heads.head_dim > MAX_HEAD_DIM:
            return None
        kernels = load()
        if kernels is None:
            return None
        make = Products(kernels, step.words.dtype)
        products = [
            LayerProducts(
                make.of(layer.mix), make.of(layer.dense), make.gate(layer.gate, layer.up), make.of(layer.down)
            )
            for layer in step.layers
        ]
        head = make.head(step.head) if step.model.quantised_head else make.of(step.head)
        if head is None or any(part is None for layer in products for part in layer):
            return None
        return cls(step, kernels, products, head)

    def __call__(
        self, ids: Tensor, position_ids: Tensor, store: KVStore, may_look: Tensor | None, *, max_position: int
    ) -> Tensor:
        """As `TokenStep.__call__`."""
        fits = len(position_ids) >= len(ids) and has_room(store, len(ids), self._words.dtype)
        if len(ids) > MAX_ROWS or not fits:
            return self._step(ids, position_ids, store, may_look, max_position=max_position)
        return self._run(ids, position_ids, store, may_look, len(ids), max_position)

    def together(
        self, ids: Tensor, position_ids: Tensor, store: KVStore, may_look: Tensor | None, *, max_position: int
    ) -> Tensor | None:
        """Several tokens of each row, known ahead -> logits [B, S, V] behind each; weights are read once for all.

        Args:
            ids, position_ids: [B, S].
            store, max_position: as `TokenStep.__call__`.
            may_look: bool [B or 1, 1, 1, T + S - 1]; None: all. Tokens see those before them besides.

        Returns:
            None where this is not made for them.
        """
        rows, count = ids.shape
        fits = position_ids.shape == ids.shape and has_room(store, rows, self._words.dtype, tokens=count)
        if rows * count > MAX_ROWS or not fits:
            return None
        in_turn = ids.t().reshape(-1), position_ids.t().reshape(-1, 1)
        logits = self._run(*in_turn, store, may_look, rows, max_position)
        return logits.view(count, rows, -1).transpose(0, 1)

    def _run(
        self, ids: Tensor, position_ids: Tensor, store: KVStore, may_look: Tensor | None, rows: int, max_position: int
    ) -> Tensor:
        """Tokens, first that of each of some rows, then the next of each, …"""
        self._make_room(len(ids), store.max_length)
        kernels, normed, mixed, context, inner = self._kernels, self._normed, self._mixed, self._context, self._inner
        turns, neighbours = self._step.rotary.rows(position_ids, max_position), self._step.heads.interleaved
        turn = [(context, mixed, turns, store.length)]
        if rows < len(ids):  # a token attends when those before it are in the cache
            starts = range(0, len(ids), rows)
            parts = zip(*(each.split(rows) for each in (context, mixed, *turns)), strict=True)
            turn = [(a, b, cs, store.length + start // rows) for start, (a, b, *cs) in zip(starts, parts, strict=True)]
        hidden = F.embedding(ids, self._words).float()  # the residual stream, [B, D], changed in place
        if may_look is not None and may_look.stride(-1) != 1:
            may_look = may_look.contiguous()
        for layer, keys, values in zip(self._layers, store.keys, store.values, strict=True):
            norm, epsilon, norm_again, epsilon_again, mix, dense, gate, down = layer
            kernels.rms_norm(normed, hidden, norm, epsilon)
            mix.into(mixed, normed)
            for out, given, turned, place in turn:
                kernels.attend(
                    out, given, turned, keys, values, place, may_look, self._scores,
                    neighbours=neighbours, half=self._words.dtype == torch.bfloat16,
                )  # fmt: skip
            dense.into(hidden, context, residual=hidden)
            kernels.rms_norm(normed, hidden, norm_again, epsilon_again)
            gate.into(inner, normed)
            down.into(hidden, inner, residual=hidden)
        kernels.rms_norm(normed, hidden, self._last_norm, self._last_epsilon)
        logits = hidden.new_empty(len(ids), self._head.outputs)
        self._head.into(logits, normed)
        return logits.to(self._words.dtype)

    def _make_room(self, rows: int, columns: int) -> None:
        """For what lies between two kernels."""
        if len(self._normed) != rows:
            width, mixed, inner = self._sizes
            self._normed, self._mixed, self._context, self._inner = (
                torch.empty(rows, size, dtype=torch.float32, device="cpu")
                for size in (width, mixed, self._step.heads.context_size, inner)
            )
        if self._scores.numel() < rows * self._step.heads.num_heads * columns:
            self._scores = torch.empty(rows, self._step.heads.num_heads, columns, dtype=torch.float32, device="cpu")
