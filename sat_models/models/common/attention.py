"""Causal or masked attention through torch's fused kernels.

Legend: B batch, N heads, S queries, T keys, H head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, may_look: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Attention of the last S of T positions.

    Args:
        q: [B, N, S, H]; k, v: [B, N, T, H] with T >= S.
        may_look: bool [B or 1, 1, S, T]; None = each position sees itself and what is before it.
        dropout: probability.
    """
    queries, keys = q.shape[2], k.shape[2]
    if may_look is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=may_look, dropout_p=dropout)
    if queries == 1:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    if queries == keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
    lower = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(diagonal=keys - queries)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=lower, dropout_p=dropout)
