"""What the layers of an EVA2-CLIP tower do differently from SAT's default.

Legend: N images, P patches, V vision width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixins.parallel import leave_model_parallel_region
from mixins.sat_compat import BaseMixin


class PatchEmbeddingMixin(BaseMixin):
    """The mixin "patch_embedding": non-overlapping patches; the class token (word embedding 0) stands in front."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)

    def word_embedding_forward(self, input_ids: Tensor, *, image: Tensor, **kw: Any) -> Tensor:
        """input_ids [N, 1] and image [N, C, H, W] -> [N, 1 + P, V]."""
        patches = self.proj(image).flatten(2).transpose(1, 2)
        return torch.cat((self.transformer.word_embeddings(input_ids), patches), dim=1)


class LearnedPositionMixin(BaseMixin):
    """The mixin "pos_embedding": one learned vector per position of the one resolution the tower was made for."""

    def position_embedding_forward(self, position_ids: Tensor | None, **kw: Any) -> Tensor:
        """-> [1, 1 + P, V]."""
        return self.transformer.position_embeddings.weight.unsqueeze(0)


class DropClassTokenMixin(BaseMixin):
    """The mixin "final": features are the patch tokens of the last layer, without norm and without the class token."""

    def final_forward(self, logits: Tensor, **kw: Any) -> Tensor:
        """[N, 1 + P, V] -> [N, P, V]."""
        return leave_model_parallel_region(logits)[:, 1:]


class PostNormLayerMixin(BaseMixin):
    """The mixin "newpost": norms on the sub-layers' outputs, `x + LN(attn(x))`, `x + LN(mlp(x))` (EVA-CLIP-E)."""

    def layer_forward(self, hidden_states: Tensor, mask: Tensor, *args: Any, **kw: Any) -> Tensor:
        """[N, 1 + P, V] -> same."""
        layer = self.transformer.layers[int(kw["layer_id"])]
        hidden_states = hidden_states + layer.input_layernorm(layer.attention(hidden_states, mask, **kw))
        return hidden_states + layer.post_attention_layernorm(layer.mlp(hidden_states, **kw))
