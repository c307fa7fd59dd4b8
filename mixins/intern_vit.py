"""Layers of InternViT, where they differ from SAT's default: norms of queries and keys, scales of what a layer
adds, a table of positions that is stretched to the picture at hand.

Source: github.com/OpenGVLab/InternVL at 2410d1d, `internvl_chat/internvl/model/internvl_chat/modeling_intern_vit.py`.
Legend: N images, P patches, V vision width, A heads, H head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.rms_norm import RMSNorm
from mixins.sat_compat import BaseMixin


class LayerScale(nn.Module):
    """One factor for each number that attention and MLP of a layer add."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.attention = nn.Parameter(torch.full((hidden_size,), 0.1))
        self.mlp = nn.Parameter(torch.full((hidden_size,), 0.1))


class ScaledLayerMixin(BaseMixin):
    """The mixin "scaled": `x + a · attn(norm(x))`, `x + m · mlp(norm(x))`, up to the layer whose output is read.

    Layers after it are in the checkpoint and never run.

    Args:
        num_layers: of the tower.
        hidden_size: V.
        layers_run: layers from the first whose output is needed.
    """

    def __init__(self, num_layers: int, hidden_size: int, layers_run: int) -> None:
        super().__init__()
        self.layers_run = layers_run
        self.scales = nn.ModuleList(LayerScale(hidden_size) for _ in range(num_layers))

    @property
    def never_run(self) -> tuple[nn.Module, ...]:
        """Layers that the checkpoint holds and no forward reads."""
        return (*self.transformer.layers[self.layers_run :], *self.scales[self.layers_run :])

    def layer_forward(self, hidden_states: Tensor, mask: Tensor, *args: Any, **kw: Any) -> Tensor:
        """[N, 1 + P, V] -> same."""
        number = int(kw["layer_id"])
        if number >= self.layers_run:
            return hidden_states
        layer, scale = self.transformer.layers[number], self.scales[number]
        attended = layer.attention(layer.input_layernorm(hidden_states), mask, **kw)
        hidden_states = hidden_states + scale.attention * attended
        return hidden_states + scale.mlp * layer.mlp(layer.post_attention_layernorm(hidden_states), **kw)


class NormedQueryKeyMixin(BaseMixin):
    """The mixin "qk_norm": an RMSNorm over all heads of a query, and of a key, before they are cut into heads.

    Args:
        num_layers: of the tower.
        num_heads: A; a process holds all of them.
        hidden_size: V = A · H.
        layers_run: layers from the first whose output is needed.
        epsilon: of the norms.
    """

    def __init__(self, num_layers: int, num_heads: int, hidden_size: int, *, layers_run: int, epsilon: float) -> None:
        super().__init__()
        self.num_heads, self.layers_run = num_heads, layers_run
        self.query_norm = nn.ModuleList(RMSNorm(hidden_size, eps=epsilon) for _ in range(num_layers))
        self.key_norm = nn.ModuleList(RMSNorm(hidden_size, eps=epsilon) for _ in range(num_layers))

    @property
    def never_run(self) -> tuple[nn.Module, ...]:
        """As `ScaledLayerMixin.never_run`."""
        return (*self.query_norm[self.layers_run :], *self.key_norm[self.layers_run :])

    def attention_forward(self, hidden_states: Tensor, mask: Tensor, **kw: Any) -> Tensor:
        """[N, 1 + P, V] -> same."""
        number = int(kw["layer_id"])
        attention = self.transformer.layers[number].attention
        query, key, value = attention.query_key_value(hidden_states).chunk(3, dim=-1)
        query, key = self.query_norm[number](query), self.key_norm[number](key)
        heads = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value))
        context = attention.hooks["attention_fn"](*heads, mask, None, **kw)
        return attention.dense(context.transpose(1, 2).flatten(2))


class StretchedPositionMixin(BaseMixin):
    """The mixin "pos_embedding": one learned vector per patch of the picture that the table was made for; for others
    the table is interpolated (bicubic, in fp32). The class token's comes first.

    Args:
        patch_size: side of a patch in pixels.
    """

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def position_embedding_forward(self, position_ids: Tensor | None, *, image: Tensor, **kw: Any) -> Tensor:
        """image [N, C, H, W] -> [1, 1 + P, V]."""
        table = self.transformer.position_embeddings.weight
        height, width = (side // self.patch_size for side in image.shape[-2:])
        side = math.isqrt(len(table) - 1)
        if (height, width) == (side, side):
            return table.unsqueeze(0)
        grid = table[1:].float().view(1, side, side, -1).permute(0, 3, 1, 2)
        stretched = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        return torch.cat((table[:1], stretched.flatten(2)[0].t().to(table.dtype))).unsqueeze(0)
