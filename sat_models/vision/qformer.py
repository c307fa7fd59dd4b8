"""The Q-Former of BLIP-2: a few learned queries that read a tower's features (arXiv 2301.12597 section 3.1).

Sizes of the released one: 12 layers, width 768, 12 heads, 32 queries, cross-attention in every second layer. It is a
BERT without its text side. SAT's "post" order is BERT's with the norms counted differently: a layer's `input_layernorm`
is the norm at the end of the layer before it (in the first layer, that of the embeddings), and `final_layernorm` is the
last layer's.

Legend: N images, Q queries, T features of a picture, V their width, W width of the Q-Former, D language width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.base import ZooModel
from mixins.parallel import leave_model_parallel_region
from mixins.sat_compat import BaseTransformer
from sat_models.config import EVAViTConfig, QFormerConfig
from sat_models.vision.eva_vit import EVAViT


class QFormer(ZooModel):
    """Features [N, T, V] -> [N, Q, W]. The queries are its word embeddings."""

    def __init__(self, config: QFormerConfig) -> None:
        transformer = BaseTransformer(
            num_layers=config.num_layers,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            max_sequence_length=1,  # SAT makes a table of positions; queries have none
            inner_hidden_size=config.inner_width,
            layernorm_order="post",
            layernorm_epsilon=config.layernorm_epsilon,
            layernorm=nn.LayerNorm,
            activation_func=F.gelu,
            is_decoder=config.is_decoder if isinstance(config.is_decoder, bool) else list(config.is_decoder),
            cross_attn_hidden_size=config.cross_attn_hidden_size,
        )
        del transformer.position_embeddings
        super().__init__(config, transformer=transformer)
        self.config = config

    def forward(self, features: Tensor) -> Tensor:
        """Each picture is read by the same queries."""
        queries = torch.arange(self.config.vocab_size, device=features.device).expand(len(features), -1)
        return super().forward(
            input_ids=queries,
            position_ids=None,
            attention_mask=None,
            encoder_outputs=features,
            cross_attention_mask=None,  # every query sees every feature; SAT asks for the name
        )[0]

    def position_embedding_forward(self, *args: Any, **kwargs: Any) -> None:
        """The queries are vectors of their own; nothing is added."""

    def attention_fn(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_fn: Any, **kw: Any) -> Tensor:
        """Every query sees every query, and in cross-attention every feature."""
        return F.scaled_dot_product_attention(q, k, v)

    def final_forward(self, logits: Tensor, **kw: Any) -> Tensor:
        """[N, Q, W] -> same: there is no head."""
        return leave_model_parallel_region(logits)


class QueriedTower(nn.Module):
    """BLIP-2's reading of a picture: EVA ViT-g, then the Q-Former. [N, 3, H, W] -> [N, Q, W]."""

    def __init__(self, vit: EVAViTConfig, qformer: QFormerConfig) -> None:
        super().__init__()
        self.vit = EVAViT(vit)
        self.qformer = QFormer(qformer)

    def forward(self, image: Tensor) -> Tensor:
        """Pixels, CLIP-normalised. Raises ValueError on another picture size."""
        return self.qformer(self.vit(image))
