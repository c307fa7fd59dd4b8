"""The EVA2-CLIP tower of CogVLM (`mixins.eva.vit_model` in its checkpoints).

Sizes of the released tower: 63 layers, width 1792, 16 heads (arXiv 2303.15389; CogVLM drops the last block).
Legend: N images, P patches, V vision width.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mixins.base import ZooModel
from mixins.sat_compat import BaseTransformer
from mixins.vision_tower import DropClassTokenMixin, LearnedPositionMixin, PatchEmbeddingMixin, PostNormLayerMixin
from sat_models.config import VisionTowerConfig


class EVA2CLIPModel(ZooModel):
    """Pixels [N, 3, H, W] -> features [N, P, V]."""

    def __init__(self, config: VisionTowerConfig) -> None:
        transformer = BaseTransformer(
            num_layers=config.num_layers,
            vocab_size=1,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            max_sequence_length=config.num_patches + 1,
            inner_hidden_size=config.inner_hidden_size,
            layernorm_order="post",
            layernorm_epsilon=config.layernorm_epsilon,
            layernorm=nn.LayerNorm,
            activation_func=F.gelu,
            use_bias=True,
            use_final_layernorm=config.use_final_layernorm,
            row_parallel_linear_final_bias=config.row_parallel_linear_final_bias,
        )
        super().__init__(config, transformer=transformer)
        self.config = config
        self.add_mixin(
            "patch_embedding", PatchEmbeddingMixin(config.in_channels, config.hidden_size, config.patch_size)
        )
        self.add_mixin("pos_embedding", LearnedPositionMixin())
        self.add_mixin("final", DropClassTokenMixin())
        self.add_mixin("newpost", PostNormLayerMixin())

    def forward(self, image: Tensor) -> Tensor:
        """Pixels [N, 3, H, W], CLIP-normalised -> [N, P, V]. Raises ValueError on another picture size."""
        side = self.config.image_size[0]
        if image.shape[1:] != (self.config.in_channels, side, side):
            raise ValueError(
                f"the vision tower takes pictures [N, {self.config.in_channels}, {side}, {side}], "
                f"got {list(image.shape)}"
            )
        ids = image.new_zeros((image.shape[0], 1)).long()
        return super().forward(input_ids=ids, position_ids=None, attention_mask=None, image=image)[0]

    def attention_fn(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_fn: Any, **kw: Any) -> Tensor:
        """Every patch sees every patch."""
        return F.scaled_dot_product_attention(q, k, v)
