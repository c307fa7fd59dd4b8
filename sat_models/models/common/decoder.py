"""The common part of the zoo's language models: positions and masks on their way to the layers.

Legend: B batch, S tokens, T cached and new tokens, N heads and G key/value heads on this rank, H head dim.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mixins.base import ZooModel
from mixins.linear import mark_heads
from mixins.sat_compat import BaseTransformer, mpu
from mixins.whole import WholeEmbedding, is_indivisible
from sat_models.config import LanguageConfig
from sat_models.models.common.attention import attend

_SMALL_VOCABULARY = 1000
"""Embeddings of fewer words SAT does not divide."""


class DecoderModel(ZooModel):
    """A causal language model of SAT's layers with a rotary mixin.

    Attributes:
        rotary_name: the mixin that holds `rotary_emb`.
    """

    config_class: type[LanguageConfig]
    rotary_name: ClassVar[str] = "rotary"

    @staticmethod
    def _base_transformer(config: LanguageConfig, **kwargs: Any) -> BaseTransformer:
        heads, words = config.heads, config.vocab_size
        shared = words < _SMALL_VOCABULARY or not is_indivisible(words)
        spread = heads.spread(mpu.get_model_parallel_world_size())
        transformer = BaseTransformer(
            num_layers=config.num_layers,
            vocab_size=words if shared else 1,
            hidden_size=config.hidden_size,
            num_attention_heads=heads.num_heads,
            hidden_size_per_attention_head=heads.head_dim,
            num_multi_query_heads=0 if heads.group == 1 else spread.num_kv_heads,
            use_qkv_bias=config.qkv_bias,
            max_sequence_length=1,  # SAT makes a table of positions; rotary takes its place below
            inner_hidden_size=config.inner_hidden_size,
            layernorm_order=config.layernorm_order,
            layernorm_epsilon=config.layernorm_epsilon,
            use_bias=config.use_bias,
            **kwargs,
        )
        del transformer.position_embeddings
        if not shared:
            transformer.word_embeddings = WholeEmbedding(words, config.hidden_size)
        for layer in transformer.layers:
            mark_heads(layer.attention.query_key_value, heads)
        return transformer

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        max_position: int | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Run the model.

        Args:
            input_ids: [B, S].
            position_ids: [B, S] or [1, S], or what the model class says; None = `default_positions`.
            attention_mask: [B or 1, 1, S, T], non-zero = may look; None = what the model was trained with: causal, or
                what its class says.
            max_position: upper bound of `position_ids`, if the caller knows it (saves one wait for the device).

        Returns:
            A list whose first element is the logits [B, S, vocab].
        """
        if position_ids is None:
            position_ids = self.default_positions(input_ids)
        if max_position is None:
            max_position = int(position_ids.max())
        rows = self.get_mixin(self.rotary_name).rotary_emb.rows(position_ids, max_position)
        may_look = self._default_mask(position_ids) if attention_mask is None else attention_mask.bool()
        # SAT casts its own mask argument to floats and cannot say "causal"; ours travels as `may_look`.
        return super().forward(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=input_ids.new_ones(1, 1),
            rotary_rows=rows,
            may_look=may_look,
            **kwargs,
        )

    def default_positions(self, input_ids: Tensor) -> Tensor:
        """Position ids [1, S] where the caller gives none: 0 … S-1."""
        return torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)

    def next_positions(self, position_ids: Tensor) -> Tensor:
        """Position ids [B, 1] of the token after the last of `position_ids` [B, S]."""
        return position_ids[..., -1:] + 1

    def _default_mask(self, position_ids: Tensor) -> Tensor | None:
        return None

    def position_embedding_forward(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is added to the embeddings: positions enter through rotary."""

    def attention_fn(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_fn: Any, **kw: Any) -> Tensor:
        """q [B, N, S, H], k and v [B, G, T, H] -> [B, N, S, H]; causal unless `may_look` says otherwise."""
        dropout = dropout_fn.p if dropout_fn is not None and dropout_fn.training else 0.0
        if kw.get("cross_attention"):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return attend(q, k, v, kw["may_look"], dropout)
