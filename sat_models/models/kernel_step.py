"""A decode step of one row on a CPU, through the C kernels of `token_kernels`: at the speed of memory.

Legend: C columns of the cache, D hidden, N heads, H head dim, I inner, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixins.kv_cache import KVStore
from sat_models.models.token_kernels import MAX_HEAD_DIM, TokenKernels, load
from sat_models.models.token_step import TokenStep


class KernelStep:
    """Called like the `TokenStep` that it stands for, which takes what is not one row behind a prompt.

    Args:
        step: one for which `of` did not say None.
        kernels: the loaded library.
    """

    def __init__(self, step: TokenStep, kernels: TokenKernels) -> None:
        self._step, self._kernels = step, kernels
        # Detached, so that this memory lives as long as its address is used.
        self._layers = [
            (layer.norm.weight.detach(), layer.norm.variance_epsilon, layer.mix.weight.detach(),
             layer.dense.weight.detach(), layer.norm_again.weight.detach(), layer.norm_again.variance_epsilon,
             layer.gate.weight.detach(), layer.up.weight.detach(), layer.down.weight.detach())
            for layer in step.layers
        ]  # fmt: skip
        self._words, self._head = step.words.detach(), step.head.weight.detach()
        self._last_norm, self._last_epsilon = step.last_norm.weight.detach(), step.last_norm.variance_epsilon
        first = step.layers[0]
        self._normed = self._words.new_empty(len(self._last_norm))  # [D]
        self._mixed = self._words.new_empty(len(first.mix.weight))  # [3 N H]
        self._context = self._words.new_empty(len(self._mixed) // 3)  # [N H]
        self._inner = self._words.new_empty(len(first.up.weight))  # [I]
        self._scores = self._words.new_empty(0)  # [N C]

    @classmethod
    def of(cls, step: TokenStep) -> KernelStep | None:
        """None where the kernels are not there, or were not made for such a model."""
        if not step.bare or any(layer.activation is not F.silu for layer in step.layers):
            return None
        weights = [step.words, step.last_norm.weight, step.head.weight]
        for layer in step.layers:
            weights += [layer.norm.weight, layer.norm_again.weight, *(linear.weight for linear in layer.linears)]
        for weight in weights:
            if weight.device.type != "cpu" or weight.dtype != torch.float32 or not weight.is_contiguous():
                return None
        if len(step.layers[0].mix.weight) // (3 * step.heads) > MAX_HEAD_DIM:
            return None
        kernels = load()
        return None if kernels is None else cls(step, kernels)

    def __call__(
        self, ids: Tensor, position_ids: Tensor, store: KVStore, may_look: Tensor | None, *, max_position: int
    ) -> Tensor:
        """As `TokenStep.__call__`."""
        if len(ids) > 1 or store.keys[0] is None or store.length >= store.max_length:
            return self._step(ids, position_ids, store, may_look, max_position=max_position)
        kernels, normed, mixed, context, inner = self._kernels, self._normed, self._mixed, self._context, self._inner
        turns = self._step.rotary.rows(position_ids, max_position)
        hidden = F.embedding(ids, self._words)[0]  # the residual stream, [D], changed in place
        if len(self._scores) < self._step.heads * store.max_length:
            self._scores = inner.new_empty(self._step.heads * store.max_length)
        may_look = None if may_look is None else may_look.contiguous()
        for layer, keys, values in zip(self._layers, store.keys, store.values, strict=True):
            norm, epsilon, mix, dense, norm_again, epsilon_again, gate, up, down = layer
            kernels.rms_norm(normed, hidden, norm, epsilon)
            kernels.product(mixed, normed, mix)
            kernels.attend(context, mixed, turns, keys, values, store.length, may_look, self._scores)
            kernels.product(hidden, context, dense, residual=hidden)
            kernels.rms_norm(normed, hidden, norm_again, epsilon_again)
            kernels.gated(inner, normed, gate, up)
            kernels.product(hidden, inner, down, residual=hidden)
        kernels.rms_norm(normed, hidden, self._last_norm, self._last_epsilon)
        logits = hidden.new_empty(1, len(self._head))
        kernels.product(logits, normed, self._head)
        return logits
