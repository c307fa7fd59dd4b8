"""The mixin "adaln" or "adaln_layer" of a diffusion transformer: one attention and one MLP for text and image, each of
the two moved, scaled and gated by what the time says.

Sources: github.com/THUDM/CogView3 at d450a74, `sat/dit.py`; github.com/THUDM/CogVideo at v1.0,
`sat/dit_video_concat.py`.
Legend: B batch, T text tokens, S all tokens, D hidden, N heads on this rank, H head dim, E width of the time's vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.sat_compat import BaseMixin, non_conflict


class JointAdaLNMixin(BaseMixin):
    """Twelve vectors a layer: shift, scale, gate of attention, then of the MLP, for the image; the same for the text.

    Queries and keys pass a LayerNorm without weights, head by head.

    Args:
        num_layers: of the transformer.
        hidden_size: D.
        time_embed_dim: E.
        qk_epsilon: of the norms of queries and keys.
    """

    def __init__(self, num_layers: int, hidden_size: int, time_embed_dim: int, *, qk_epsilon: float = 1e-6) -> None:
        super().__init__()
        self.qk_epsilon = qk_epsilon
        self.adaln_modules = _modulations(num_layers, hidden_size, time_embed_dim)

    def _vectors(self, layer: int, emb: Tensor) -> Tensor:
        """[B, 12 D] for a layer."""
        return self.adaln_modules[layer](emb)

    def layer_forward(
        self, hidden_states: Tensor, mask: Tensor, *args: Any, emb: Tensor, text: Tensor, **kw: Any
    ) -> Tensor:
        """hidden_states [B, S, D], text first; emb [B, E]; of text [B, T, …] the length counts -> [B, S, D]."""
        number, words = int(kw["layer_id"]), text.shape[1]
        layer = self.transformer.layers[number]
        both = self._vectors(number, emb).unsqueeze(1).unflatten(-1, (2, 6, -1))  # B, 1, image or text, which, D
        image_vectors, text_vectors = both[:, :, 0].unbind(2), both[:, :, 1].unbind(2)
        for first, norm, block in (
            (0, layer.input_layernorm, lambda x: layer.attention(x, mask, text=text, **kw)),
            (3, layer.post_attention_layernorm, lambda x: layer.mlp(x, **kw)),
        ):
            of_text, of_image = text_vectors[first : first + 3], image_vectors[first : first + 3]
            added = block(_moved(norm(hidden_states), words, of_text, of_image))
            hidden_states = _gated(hidden_states, added, words, of_text, of_image)
        return hidden_states

    def attention_fn(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_fn: Any, *, text_copies: int = 1, **kw: Any
    ) -> Tensor:
        """q, k, v [B, N, S, H] -> [B, N, S, H]; everything sees everything.

        Args:
            text_copies: the text is one token that stands for so many alike ones; together they weigh as one whose
                score is larger by the logarithm of their number.
        """
        q, k = (F.layer_norm(x, x.shape[-1:], eps=self.qk_epsilon) for x in (q, k))
        if text_copies == 1:
            return F.scaled_dot_product_attention(q, k, v)
        weight = q.new_zeros(1, k.shape[-2])
        weight[0, 0] = math.log(text_copies)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=weight)


class NormedJointAdaLNMixin(JointAdaLNMixin):
    """The same under CogVideoX's names, with weights in the norms of queries and keys; the attention itself is that of
    the mixin before it, which may turn them.

    Args:
        head_dim: H.
    """

    def __init__(
        self, num_layers: int, hidden_size: int, time_embed_dim: int, head_dim: int, *, qk_epsilon: float = 1e-6
    ) -> None:
        BaseMixin.__init__(self)
        self.adaLN_modulations = _modulations(num_layers, hidden_size, time_embed_dim)
        norms = (nn.ModuleList(nn.LayerNorm(head_dim, eps=qk_epsilon) for _ in range(num_layers)) for _ in "qk")
        self.query_layernorm_list, self.key_layernorm_list = norms

    def _vectors(self, layer: int, emb: Tensor) -> Tensor:
        return self.adaLN_modulations[layer](emb)

    @non_conflict
    def attention_fn(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_fn: Any, old_impl: Any, **kw: Any
    ) -> Tensor:
        """As `JointAdaLNMixin.attention_fn`."""
        layer = int(kw["layer_id"])
        q, k = self.query_layernorm_list[layer](q), self.key_layernorm_list[layer](k)
        return old_impl(q, k, v, mask, dropout_fn, **kw)


def _modulations(num_layers: int, hidden_size: int, time_embed_dim: int) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Sequential(nn.SiLU(), nn.Linear(time_embed_dim, 12 * hidden_size)) for _ in range(num_layers)
    )


def _moved(x: Tensor, words: int, of_text: Sequence[Tensor], of_image: Sequence[Tensor]) -> Tensor:
    """`x * (1 + scale) + shift`, the first `words` by the text's vectors."""
    parts = ((x[:, :words], of_text), (x[:, words:], of_image))
    return torch.cat([part * (1 + scale) + shift for part, (shift, scale, _) in parts], dim=1)


def _gated(x: Tensor, added: Tensor, words: int, of_text: Sequence[Tensor], of_image: Sequence[Tensor]) -> Tensor:
    """`x + gate * added`, likewise."""
    parts = ((slice(None, words), of_text[2]), (slice(words, None), of_image[2]))
    return torch.cat([x[:, part] + gate * added[:, part] for part, gate in parts], dim=1)
