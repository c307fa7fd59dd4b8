"""Causal or masked attention through torch's fused kernels.

Legend: B batch, N heads, G key/value heads, S queries, T keys, H head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mixins.heads import repeated
from sat_models.models.common import attention_kernels


def attend(q: Tensor, k: Tensor, v: Tensor, may_look: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Attention of the last S of T positions.

    Args:
        q: [B, N, S, H]; k, v: [B, G, T, H] with T >= S; N is a multiple of G.
        may_look: bool [B or 1, 1, S, T]; None = each position sees itself and what is before it.
        dropout: probability.
    """
    queries, keys = q.shape[2], k.shape[2]
    if queries == 1:
        return attend_once(q, k, v, may_look, dropout)
    k, v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
    if may_look is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=may_look, dropout_p=dropout)
    if dropout == 0 and attention_kernels.takes(q, k):
        return attention_kernels.causal_attention(q, k, v)
    if queries == keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    lower = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(diagonal=keys - queries)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=lower, dropout_p=dropout)


def attend_once(q: Tensor, k: Tensor, v: Tensor, may_look: Tensor | None, dropout: float = 0.0) -> Tensor:
    """As `attend` with one query a head; those that share keys go through them side by side, so nothing is copied."""
    groups = k.shape[1]
    side_by_side = q if q.shape[1] == groups else q.reshape(q.shape[0], groups, -1, q.shape[-1])
    context = F.scaled_dot_product_attention(side_by_side, k, v, attn_mask=may_look, dropout_p=dropout)
    return context if side_by_side is q else context.reshape(q.shape)
