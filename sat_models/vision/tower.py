"""The common part of towers made of SAT's transformer: patches, learned positions, attention of all to all.

Legend: N images, P patches, V vision width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from mixins.base import ZooModel
from mixins.sat_compat import BaseTransformer
from mixins.vision_tower import LearnedPositionMixin, PatchEmbeddingMixin
from mixins.whole import whole_where_indivisible
from sat_models.config import VisionTowerConfig


class VisionTower(ZooModel):
    """Pixels [N, 3, H, W] -> features; a subclass adds the mixins that make them.

    Processes that share the model cut the tower where their number divides `config.divisible_by`; elsewhere each of
    them holds and computes all of it.

    Attributes:
        activation, patch_bias: of the tower's MLPs; of its patch embedding.
    """

    activation: ClassVar[Callable[[Tensor], Tensor]] = staticmethod(F.gelu)
    patch_bias: ClassVar[bool] = True

    def __init__(self, config: VisionTowerConfig) -> None:
        make = partial(
            BaseTransformer,
            num_layers=config.num_layers,
            vocab_size=1,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            max_sequence_length=config.num_positions,
            inner_hidden_size=config.inner_hidden_size,
            layernorm_order=config.LAYERNORM_ORDER,
            layernorm_epsilon=config.layernorm_epsilon,
            layernorm=self._norm(config),
            activation_func=self.activation,
            use_bias=True,
            use_final_layernorm=config.use_final_layernorm,
            row_parallel_linear_final_bias=config.row_parallel_linear_final_bias,
        )
        super().__init__(config, transformer=whole_where_indivisible(make, config.divisible_by))
        self.config = config
        patches = PatchEmbeddingMixin(config.in_channels, config.hidden_size, config.patch_size, bias=self.patch_bias)
        self.add_mixin("patch_embedding", patches)
        self.add_mixin("pos_embedding", LearnedPositionMixin())

    @staticmethod
    def _norm(config: VisionTowerConfig) -> type[nn.Module]:
        return nn.LayerNorm

    def forward(self, image: Tensor) -> Tensor:
        """Pixels [N, 3, H, W], normalised -> features. Raises ValueError on another picture size."""
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
