"""The base of most of the zoo: a LLaMA made of "rotary", "lm" and "mlp"."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from mixins.gated_mlp import LLaMAMlpMixin
from mixins.lm_head import LMMixin
from mixins.rms_norm import RMSNorm
from mixins.rotary import RotaryMixin
from mixins.sat_compat import BaseTransformer
from sat_models.config import LLaMAConfig
from sat_models.models.common.decoder import DecoderModel


class LLaMAModel(DecoderModel):
    """Vicuna/LLaMA shape: pre-norm RMSNorm, rotary attention, SwiGLU, an output projection of its own.

    No biases, but for those of queries, keys and values where the config has them (`qkv_bias`).

    Args:
        config: sizes.
        transformer: an existing `BaseTransformer` to share; made from `config` when None.
        parallel_output: SAT's flag, kept for its signature: "lm" gathers the logits in either case.

    Attributes:
        rotary_table_dtype: see `RotaryEmbedding`. None, the model's, for weights that SAT trained; fp32 for weights
            that transformers trained.
    """

    config_class = LLaMAConfig
    rotary_table_dtype: ClassVar[torch.dtype | None] = None

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
        rotary = RotaryMixin(config.heads, table_dtype=self.rotary_table_dtype)
        self.add_mixin("rotary", rotary)
        self.add_mixin("lm", LMMixin(config.vocab_size, config.hidden_size))
        self.add_mixin("mlp", LLaMAMlpMixin(config.num_layers, config.hidden_size, config.inner_hidden_size))

    @classmethod
    def _make_transformer(cls, config: LLaMAConfig, parallel_output: bool, **kwargs: Any) -> BaseTransformer:
        return cls._base_transformer(
            config,
            layernorm=RMSNorm,
            activation_func=nn.functional.silu,
            parallel_output=parallel_output,
            **kwargs,
        )
