"""Layers of a vision tower (EVA2-CLIP, EVA ViT-g, CLIP), where they differ from SAT's default.

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

    def __init__(self, in_channels: int, hidden_size: int, patch_size: int, *, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size, bias=bias)

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


class FinalNormMixin(BaseMixin):
    """The mixin "cls" of EVA ViT-g: BLIP-2's norm over all tokens; the class token stays."""

    def __init__(self, hidden_size: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.ln_vision = nn.LayerNorm(hidden_size, eps=epsilon)

    def final_forward(self, logits: Tensor, **kw: Any) -> Tensor:
        """[N, 1 + P, V] -> same."""
        return self.ln_vision(leave_model_parallel_region(logits))


class EarlyFeatureMixin(BaseMixin):
    """The mixin "early" of CLIP: a norm before the first layer, and features of a layer before the last.

    Layers after it, and the norm after the last one, are in the checkpoint and never run.

    Args:
        layers_run: layers from the first whose output is needed.
        last_norm: whether the checkpoint has that norm.
    """

    def __init__(self, hidden_size: int, epsilon: float, layers_run: int, *, last_norm: bool = True) -> None:
        super().__init__()
        self.layers_run = layers_run
        self.pre_layernorm = nn.LayerNorm(hidden_size, eps=epsilon)
        self.post_layernorm = nn.LayerNorm(hidden_size, eps=epsilon) if last_norm else None

    @property
    def never_run(self) -> tuple[nn.Module, ...]:
        """Layers that the checkpoint holds and no forward reads."""
        norms = () if self.post_layernorm is None else (self.post_layernorm,)
        return (*self.transformer.layers[self.layers_run :], *norms)

    def layer_forward(self, hidden_states: Tensor, mask: Tensor, *args: Any, **kw: Any) -> Tensor:
        """[N, 1 + P, V] -> same; `x + attn(LN(x))`, `x + mlp(LN(x))`."""
        number = int(kw["layer_id"])
        if number >= self.layers_run:
            return hidden_states
        if number == 0:
            hidden_states = self.pre_layernorm(hidden_states)
        layer = self.transformer.layers[number]
        hidden_states = hidden_states + layer.attention(layer.input_layernorm(hidden_states), mask, **kw)
        return hidden_states + layer.mlp(layer.post_attention_layernorm(hidden_states), **kw)
