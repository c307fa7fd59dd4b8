"""The mixin "packed": attention for rows that hold one picture and many independent questions about it.

A row is a prefix (the picture) followed by R lanes of L tokens. A token sees the prefix and, as `lane_mask` says, its
own lane; lanes do not see each other. The result is that of one dense [S, S] mask, at the cost of R small ones. With
one lane, which holds questions of any length one behind the other, keys and values are not copied.

Legend: B rows, N heads, G key/value heads, S = P + R·L tokens, P prefix, R lanes, L lane length, H head dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mixins.heads import repeated
from mixins.sat_compat import BaseMixin, non_conflict

PACKED_NAME = "packed"


class PackedLanesMixin(BaseMixin):
    """Active in forwards that pass `lane_mask`; without it, and in cross-attention, the model's own attention runs."""

    @non_conflict
    def attention_fn(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        dropout_fn: Any,
        *,
        old_impl: Any,
        lane_mask: Tensor | None = None,
        **kw: Any,
    ) -> Tensor:
        """q [B, N, S, H], k and v [B, G, S, H]; lane_mask bool [B, R, L, P + L], True = may look. -> as q."""
        if lane_mask is None or kw.get("cross_attention"):
            return old_impl(q, k, v, mask, dropout_fn, **kw)
        batch, heads, tokens, head_dim = q.shape
        k, v = repeated(k, heads), repeated(v, heads)
        lanes, lane_length = lane_mask.shape[1:3]
        prefix = tokens - lanes * lane_length
        prefix_out = _attend(q[:, :, :prefix], k[:, :, :prefix], v[:, :, :prefix], is_causal=True)

        def by_lane(x: Tensor) -> Tensor:  # [B, N, R·L, H] -> [B, R, N, L, H]
            return x[:, :, prefix:].unflatten(2, (lanes, lane_length)).transpose(1, 2)

        def with_prefix(x: Tensor) -> Tensor:  # -> [B·R, N, P + L, H]
            if lanes == 1:
                return x
            head = x[:, None, :, :prefix].expand(batch, lanes, heads, prefix, head_dim)
            return torch.cat((head, by_lane(x)), dim=3).flatten(0, 1)

        lane_out = _attend(
            by_lane(q).flatten(0, 1), with_prefix(k), with_prefix(v), attn_mask=lane_mask.flatten(0, 1).unsqueeze(1)
        )
        lane_out = lane_out.unflatten(0, (batch, lanes)).transpose(1, 2).flatten(2, 3)
        return torch.cat((prefix_out, lane_out), dim=2)


def _attend(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
    """torch's fused attention; on a CPU in fp32, since its backward in bf16 takes three times as long."""
    if q.device.type != "cpu" or q.dtype == torch.float32:
        return F.scaled_dot_product_attention(q, k, v, **how)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **how).to(q.dtype)
