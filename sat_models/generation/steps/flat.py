"""One more token per row through a LLaMA, without the machinery of hooks around it: what decoding repeats most.

The hooks say what a layer does; this does the same as one flat sequence of operators, with the parts that the mixins
name themselves (`mixins/text_token.py`). On a CPU, and on a GPU without graphs, calling hooks would cost as much as the
products. A model with a mixin that does not say it is decoded through its hooks.

Legend: B rows, T cached tokens and the new one, D hidden, G key/value heads, H head dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.cache_form import CacheForm
from mixins.kv_cache import KVCacheMixin, KVStore
from mixins.linear import is_whole
from mixins.rms_norm import RMSNorm
from mixins.rotary import RotaryRows, choose_rotate
from mixins.sat_compat import BaseTransformerLayer, VocabParallelEmbedding, mpu
from mixins.text_token import AttentionPart, GatedPart, says
from sat_models.models.common.attention import attend_once
from sat_models.models.common.decoder import DecoderModel
from sat_models.models.common.quantised import waits_for_host

Product = Callable[[Tensor], Tensor]
Write = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Puts new keys and values [B, G, 1, H] of a layer into a cache; all of them, [B, G, T, H] each."""

_HOOKS = {
    "word_embedding_forward", "position_embedding_forward", "attention_forward", "attention_fn", "mlp_forward",
    "final_forward",
}  # fmt: skip
"""Every hook that a model decoded here has, the first one or not: between them, a layer is SAT's own."""

_SAID = ("attention_forward", "mlp_forward", "final_forward")
"""Those for which a mixin says what a token of text passes."""

_OF_THE_MODEL = {"position_embedding_forward", "attention_fn"}
"""Those in which the model itself has a part."""

_EMBEDDINGS = {VocabParallelEmbedding, nn.Embedding}
"""SAT takes torch's own for small vocabularies."""


class Layer(NamedTuple):
    """The parts of one layer that a token goes through, in this order."""

    norm: RMSNorm
    mix: nn.Module
    dense: nn.Module
    norm_again: RMSNorm
    activation: Product
    gate: nn.Module
    up: nn.Module
    down: nn.Module

    @property
    def linears(self) -> tuple[nn.Module, ...]:
        return self.mix, self.dense, self.gate, self.up, self.down


class TokenStep:
    """`step(ids, position_ids, …)` gives what a forward of the model over one token per row would.

    It holds the weights of the moment at which it was made. No gradients.

    Args:
        model: one for which `of` did not say None.

    Attributes:
        model: that one.
        words: the embedding, [V, D].
        rotary: gives the rotary rows.
        heads: how a row of queries, keys and values is cut.
        layers, last_norm, head: the modules that a token goes through.
        waits: whether a GPU waits for the host inside of the step.
        bare: whether all linears are weights and biases and nothing else.
    """

    def __init__(self, model: DecoderModel) -> None:
        self.model = model
        transformer = model.transformer
        attention, mlp, head = (_mixin_of(model.hooks[name]) for name in _SAID)
        parts: list[tuple[AttentionPart, GatedPart]] = [
            (attention.text_token(number), mlp.text_token(number)) for number in range(len(transformer.layers))
        ]
        self.words: Tensor = transformer.word_embeddings.weight
        self.rotary, self.heads = parts[0][0].rotary, parts[0][0].heads
        self.layers = [
            Layer(layer.input_layernorm, mixing.mix, mixing.dense, layer.post_attention_layernorm, *gated)
            for layer, (mixing, gated) in zip(transformer.layers, parts, strict=True)
        ]
        self.last_norm: RMSNorm = transformer.final_layernorm
        self.head: nn.Module = head.text_token()
        linears = [linear for layer in self.layers for linear in layer.linears] + [self.head]
        self.waits = any(waits_for_host(linear) for linear in linears)
        self.bare = all(map(is_whole, linears))
        self._operators = [tuple(map(_operator, layer)) for layer in self.layers]
        self._last_norm, self._logits = _operator(self.last_norm), _operator(self.head)

    @classmethod
    def of(cls, model: nn.Module) -> TokenStep | None:
        """The step of a model with its cache in place; None for one that has parts unknown here."""
        return cls(model) if _is_plain(model) else None

    def __call__(
        self,
        ids: Tensor,
        position_ids: Tensor,
        store: KVStore,
        may_look: Tensor | None,
        *,
        max_position: int,
    ) -> Tensor:
        """The newest tokens -> logits [B, V] of the next ones; `store` gets keys and values, not yet counted.

        Args:
            ids: [B].
            position_ids: [B, 1].
            may_look: bool [B or 1, 1, 1, T]; None: all.
            max_position: upper bound of `position_ids`.
        """
        return self.run(ids, position_ids, store.append, may_look, max_position=max_position)

    def has_bare_parts(self, device: str, dtypes: Collection[torch.dtype]) -> bool:
        """True if activations are SiLU, and embeddings and norms bare weights of one dtype of these, on such a device:
        what kernels of our own are made for, linears aside."""
        norms = [norm.weight for layer in self.layers for norm in (layer.norm, layer.norm_again)]
        dtype = self.words.dtype
        return dtype in dtypes and all(layer.activation is F.silu for layer in self.layers) and all(
            type(weight) in (Tensor, nn.Parameter) and weight.dtype == dtype and weight.device.type == device
            and weight.is_contiguous()
            for weight in (self.words, self.last_norm.weight, *norms)
        )  # fmt: skip

    def reserve(self, positions: int) -> RotaryRows:
        """Compute the rotary table for so many positions now: what `run` reads up to that `max_position`."""
        return self.rotary.table(positions + 1)

    def run(
        self, ids: Tensor, position_ids: Tensor, write: Write, may_look: Tensor | None, *, max_position: int
    ) -> Tensor:
        """As calling it, with any way to keep keys and values."""
        rows, heads = len(ids), self.heads
        queries, keys_too, all_heads = heads.num_heads, heads.num_heads + heads.num_kv_heads, heads.row_heads
        turns = self.rotary.rows(position_ids, max_position)
        hidden = F.embedding(ids, self.words)  # [B, D]
        if rows == 1 and self.bare:  # a vector is multiplied faster than a matrix of one row
            hidden = hidden[0]
        rotate = choose_rotate(hidden, heads)
        for number, (norm, mix, dense, norm_again, activation, gate, up, down) in enumerate(self._operators):
            mixed = mix(norm(hidden)).view(rows, all_heads, 1, -1)  # queries, keys, values
            turned = rotate(mixed[:, :keys_too], turns)
            keys, values = write(number, turned[:, queries:], mixed[:, keys_too:])
            context = attend_once(turned[:, :queries], keys, values, may_look)
            hidden = hidden + dense(context.view(*hidden.shape[:-1], -1))
            normed = norm_again(hidden)
            hidden = hidden + down(activation(gate(normed)) * up(normed))
        return self._logits(self._last_norm(hidden)).view(rows, -1)


def has_room(store: KVStore, rows: int, dtype: torch.dtype, *, tokens: int = 1) -> bool:
    """True if a cache has room for so many more tokens of so many rows, in `dtype` (autocast may have another) or in a
    form that does not depend on it."""
    if store.length + tokens > store.max_length:
        return False
    own = store.form is not CacheForm.MODEL
    return all(
        part is not None and (own or part.dtype == dtype) and part.is_contiguous() and len(part) >= rows
        for part in (*store.keys, *store.values)
    )


def _operator(part: Any) -> Product:
    """The function of a part on [B, …]: norms and whole linears as one operator each; what else there is, as it is."""
    if isinstance(part, RMSNorm):
        return partial(F.rms_norm, normalized_shape=part.weight.shape, weight=part.weight, eps=part.variance_epsilon)
    return partial(F.linear, weight=part.weight, bias=part.bias) if is_whole(part) else part


def _is_plain(model: nn.Module) -> bool:
    """True if all that takes part in a token of text is said or known here, and nobody listens in between."""
    if not isinstance(model, DecoderModel) or mpu.get_model_parallel_world_size() > 1:
        return False
    if "forward" in vars(model) or not type(model).forward.__module__.startswith("sat_models.models."):
        return False  # another forward than those of the zoo
    if not (_HOOKS - {"word_embedding_forward"} <= set(model.hooks) <= _HOOKS and _attends_with_a_cache(model)):
        return False
    if any(not says(_mixin_of(hook), name) for name, hook in model.hooks.items() if name not in _OF_THE_MODEL):
        return False
    transformer = model.transformer
    norms = [transformer.final_layernorm if transformer.use_final_layernorm else None]
    for layer in transformer.layers:
        if type(layer) is not BaseTransformerLayer or layer.layernorm_order != "pre" or layer.is_decoder:
            return False
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    if any(type(norm) is not RMSNorm for norm in norms) or type(transformer.word_embeddings) not in _EMBEDDINGS:
        return False
    return not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _attends_with_a_cache(model: DecoderModel) -> bool:
    """True if positions and attention are those of every decoder, with a cache before it and nothing else."""
    positions, attention = model.hooks["position_embedding_forward"], model.hooks["attention_fn"]
    return (
        _function(positions) is DecoderModel.position_embedding_forward
        and _function(attention) is KVCacheMixin.attention_fn
        and _function(attention.keywords["old_impl"]) is DecoderModel.attention_fn
    )


def _mixin_of(hook: Any) -> Any:
    """Whose method a hook is; None if it wraps another one."""
    return getattr(hook, "__self__", None)


def _function(hook: Any) -> Any:
    """The code that a hook runs: the function of a bound method, or of the one that a `partial` wraps."""
    return getattr(hook.func if isinstance(hook, partial) else hook, "__func__", None)
