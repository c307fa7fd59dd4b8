"""The base of models that write images as tokens: CogView2 and CogVideo.

Legend: B batch, S tokens, V rows of the head (codes of images).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.base import ZooModel
from mixins.grid_window import OUTSIDE
from mixins.sat_compat import BaseTransformer, gather_from_model_parallel_region
from sat_models.config.image_tokens import ImageTokenConfig
from sat_models.models.common.activations import tanh_gelu


class ImageTokenModel(ZooModel):
    """SAT's transformer with norms before and behind each block ("sandwich"), learned positions, tanh-GELU, and the
    rows of the image codes in the word table as its head, in fp32.

    A subclass says in `forward` what is added to the scores of attention.

    Args:
        config: sizes.
        transformer: an existing one to share; made from `config` when None.
    """

    config_class: ClassVar[type[ImageTokenConfig]] = ImageTokenConfig
    does: ClassVar[str] = ""
    """The method of a `TokenPainter` that it is for."""

    def __init__(self, config: ImageTokenConfig, transformer: BaseTransformer | None = None, **kwargs: Any) -> None:
        if transformer is None:
            transformer = BaseTransformer(
                num_layers=config.num_layers,
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                num_attention_heads=config.num_attention_heads,
                max_sequence_length=config.max_sequence_length,
                layernorm_order=config.layernorm_order,
                layernorm=nn.LayerNorm,
                activation_func=tanh_gelu,
                **kwargs,
            )
        super().__init__(config, transformer=transformer)
        self.config = config

    def _run(self, input_ids: Tensor, position_ids: Tensor, bias: Tensor, **kwargs: Any) -> list[Any]:
        # SAT's own mask argument becomes a float of ones and zeros; ours travels as `bias`.
        return super().forward(
            input_ids=input_ids, position_ids=position_ids, attention_mask=input_ids.new_ones(1, 1), bias=bias, **kwargs
        )

    def attention_fn(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_fn: Any, **kw: Any) -> Tensor:
        """q, k, v [B, N, S, D] -> [B, N, S, D]; `bias` [B or 1, 1, S, S] is added to the scores."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=kw["bias"])

    def final_forward(self, logits: Tensor, **kw: Any) -> Tensor:
        """[B, S, D] -> [B, S, V] in fp32."""
        words, codes = self.transformer.word_embeddings.weight, self.config.image_codes
        local = F.linear(logits.float(), words[: min(codes, len(words))].float())
        return gather_from_model_parallel_region(local)[..., :codes]


def bias_of(may_look: Tensor, dtype: torch.dtype, *, text: int = 0, text_weight: float = 0.0) -> Tensor:
    """What is added to scores: `OUTSIDE` where nothing may be looked at, and a weight towards the text.

    Args:
        may_look: [..., S, S] or [..., A, S], bool.
        text: number of text tokens, the first ones.
        text_weight: added to the scores of these; the originals call it attention plus.
    """
    bias = may_look.new_zeros(may_look.shape, dtype=dtype).masked_fill(~may_look, OUTSIDE)
    if text_weight:
        bias[..., :text] += text_weight
    return bias
