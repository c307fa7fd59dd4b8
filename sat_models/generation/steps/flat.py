"""One more token per row through a LLaMA, without the machinery of hooks around it: what decoding repeats most.

The hooks say what a layer does; this says the same for the parts named in `_is_plain`, as one flat sequence of
operators. On a CPU, and on a GPU without graphs, calling hooks would cost as much as the products. A model with any
other part is decoded through its hooks.

Legend: B rows, T cached tokens and the new one, D hidden, G key/value heads, H head dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from mixins.gated_mlp import LLaMAMlpMixin
from mixins.image_embedding import ImageEmbedding
from mixins.kv_cache import KVCacheMixin, KVStore
from mixins.linear import is_whole
from mixins.lm_head import LMMixin
from mixins.rms_norm import RMSNorm
from mixins.rotary import RotaryMixin, RotaryRows, choose_rotate
from mixins.sat_compat import BaseTransformerLayer, VocabParallelEmbedding, mpu
from mixins.vision_expert_attention import LlamaVisionExpertAttnMixin
from mixins.vision_expert_mlp import LlamaVisionExpertFCMixin
from sat_models.models.common.attention import attend_once
from sat_models.models.common.decoder import DecoderModel
from sat_models.models.common.quantised import waits_for_host

Product = Callable[[Tensor], Tensor]
Write = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Puts new keys and values [B, G, 1, H] of a layer into a cache; all of them, [B, G, T, H] each."""

_HOOKS = {
    "word_embedding_forward": {ImageEmbedding.word_embedding_forward, None},
    "position_embedding_forward": {DecoderModel.position_embedding_forward},
    "attention_forward": {RotaryMixin.attention_forward},
    "attention_fn": {KVCacheMixin.attention_fn},
    "mlp_forward": {LLaMAMlpMixin.mlp_forward, LlamaVisionExpertFCMixin.mlp_forward},
    "final_forward": {LMMixin.final_forward},
}
"""Every hook of a model that is decoded here, with the functions it may be. Language tokens pass no visual expert."""

_MIXINS = {
    "rotary": {RotaryMixin, LlamaVisionExpertAttnMixin},
    "mlp": {LLaMAMlpMixin, LlamaVisionExpertFCMixin},
    "lm": {LMMixin},
}
"""Mixins whose other methods are relied on too: exactly these classes, not what is derived from them."""

_EMBEDDINGS = {VocabParallelEmbedding, nn.Embedding}
"""SAT takes torch's own for small vocabularies."""


class Layer(NamedTuple):
    """What a token goes through in one layer, in this order."""

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
        bare: whether all linears are weights and nothing else.
    """

    def __init__(self, model: DecoderModel) -> None:
        self.model = model
        transformer, mlp = model.transformer, model.get_mixin("mlp")
        self.words: Tensor = transformer.word_embeddings.weight
        rotary: RotaryMixin = model.get_mixin("rotary")
        self.rotary, self.heads = rotary.rotary_emb, rotary.heads
        self.layers = [
            Layer(
                layer.input_layernorm,
                layer.attention.query_key_value,
                layer.attention.dense,
                layer.post_attention_layernorm,
                layer.mlp.activation_func,
                mlp.gate_proj[index],
                layer.mlp.dense_h_to_4h,
                layer.mlp.dense_4h_to_h,
            )
            for index, layer in enumerate(transformer.layers)
        ]
        self.last_norm: RMSNorm = transformer.final_layernorm
        self.head: nn.Module = model.get_mixin("lm").lm_head
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


def _operator(part: Any) -> Product:
    """What a part does to [B, …]: norms and bare weights as one operator each; what else there is, as it is."""
    if isinstance(part, RMSNorm):
        return partial(F.rms_norm, normalized_shape=part.weight.shape, weight=part.weight, eps=part.variance_epsilon)
    return partial(F.linear, weight=part.weight) if is_whole(part) else part


def _is_plain(model: nn.Module) -> bool:
    """Whether all that takes part in a token of text is known here, and nobody listens in between."""
    if not isinstance(model, DecoderModel) or mpu.get_model_parallel_world_size() > 1:
        return False
    if "forward" in vars(model) or not type(model).forward.__module__.startswith("sat_models.models."):
        return False  # another forward than those of the zoo
    hooks = {name: _function(model.hooks.get(name)) for name in (*model.hooks, *_HOOKS)}
    if any(function not in _HOOKS.get(name, ()) for name, function in hooks.items()):
        return False
    if _function(model.hooks["attention_fn"].keywords["old_impl"]) is not DecoderModel.attention_fn:
        return False
    if any(type(model.get_mixin(name)) not in classes for name, classes in _MIXINS.items()):
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


def _function(hook: Any) -> Any:
    """What a hook runs: the function of a bound method, or of the one that a `partial` wraps."""
    return getattr(hook.func if isinstance(hook, partial) else hook, "__func__", None)
