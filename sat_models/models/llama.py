"""The base of the zoo: a LLaMA made of "rotary", "lm" and "mlp".

Legend: B batch, S tokens, D hidden, N heads on this rank, H head dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.base import ZooModel
from mixins.gated_mlp import LLaMAMlpMixin
from mixins.lm_head import LMMixin
from mixins.rotary import RotaryMixin
from mixins.sat_compat import BaseTransformer, RMSNorm
from sat_models.config import LLaMAConfig
from sat_models.models.attention import attend


class LLaMAModel(ZooModel):
    """Vicuna/LLaMA shape: pre-norm RMSNorm, rotary attention, SwiGLU, no biases, an output projection of its own.

    Args:
        config: sizes.
        transformer: an existing `BaseTransformer` to share; made from `config` when None.
        parallel_output: SAT's flag, kept for its signature: "lm" gathers the logits in either case.
    """

    config_class = LLaMAConfig

    def __init__(
        self,
        config: LLaMAConfig,
        transformer: BaseTransformer | None = None,
        parallel_output: bool = True,
        **kwargs: Any,
    ) -> None:
        if transformer is None:
            transformer = self._make_transformer(config, parallel_output, **kwargs)
        super().__init__(config, transformer=transformer)
        self.config = config
        self.add_mixin("rotary", RotaryMixin(config.hidden_size, config.num_attention_heads))
        self.add_mixin("lm", LMMixin(config.vocab_size, config.hidden_size))
        self.add_mixin("mlp", LLaMAMlpMixin(config.num_layers, config.hidden_size, config.inner_hidden_size))

    @staticmethod
    def _make_transformer(config: LLaMAConfig, parallel_output: bool, **kwargs: Any) -> BaseTransformer:
        transformer = BaseTransformer(
            num_layers=config.num_layers,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            max_sequence_length=1,  # SAT makes a table of positions; rotary takes its place below
            inner_hidden_size=config.inner_hidden_size,
            layernorm_order=config.layernorm_order,
            layernorm_epsilon=config.layernorm_epsilon,
            layernorm=RMSNorm,
            activation_func=nn.functional.silu,
            use_bias=config.use_bias,
            parallel_output=parallel_output,
            **kwargs,
        )
        del transformer.position_embeddings
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
            position_ids: [B, S] or [1, S]; 0 … S-1 when None.
            attention_mask: [B or 1, 1, S, T], non-zero = may look; None = causal.
            max_position: upper bound of `position_ids`, if the caller knows it (saves one wait for the device).

        Returns:
            A list whose first element is the logits [B, S, vocab].
        """
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        if max_position is None:
            max_position = int(position_ids.max())
        rows = self.get_mixin("rotary").rotary_emb.rows(position_ids, max_position)
        may_look = None if attention_mask is None else attention_mask.bool()
        # SAT casts its own mask argument to floats and cannot say "causal"; ours travels as `may_look`.
        return super().forward(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=input_ids.new_ones(1, 1),
            rotary_rows=rows,
            may_look=may_look,
            **kwargs,
        )

    def position_embedding_forward(self, *args: Any, **kwargs: Any) -> None:
        """Nothing is added to the embeddings: positions enter through "rotary"."""

    def attention_fn(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_fn: Any, **kw: Any) -> Tensor:
        """q [B, N, S, H], k and v [B, N, T, H] -> [B, N, S, H]; causal unless `may_look` says otherwise."""
        dropout = dropout_fn.p if dropout_fn is not None and dropout_fn.training else 0.0
        if kw.get("cross_attention"):
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return attend(q, k, v, kw["may_look"], dropout)
