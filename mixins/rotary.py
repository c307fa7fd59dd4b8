"""Rotary position embedding (RoFormer, arXiv 2104.09864), half-split form, and attention that uses it.

Legend: B batch, N heads on this rank, S tokens, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mixins.linear import project
from mixins.sat_compat import BaseMixin

RotaryRows = tuple[Tensor, Tensor]
"""cos twice and (-sin, sin), each [B, 1, S, H] in fp32: what a head and a head with its halves exchanged are multiplied
by. Their values are those of the table, whatever its dtype."""
RotateFn = Callable[[Tensor, RotaryRows], Tensor]


def rotate_half_split(x_BNSH: Tensor, rows: RotaryRows) -> Tensor:
    """Rotate pairs (i, i + H/2) in fp32 and cast back, as the kernel that the released weights were trained with."""
    cos, sin = rows
    x = x_BNSH.float()
    first, second = x.chunk(2, dim=-1)
    # Two roundings, as the originals have; `addcmul` would have one.
    return (x * cos + torch.cat((second, first), dim=-1) * sin).to(x_BNSH.dtype)


def widen(cos: Tensor, sin: Tensor) -> RotaryRows:
    """Table rows […, H/2] as `RotaryRows` […, H]."""
    cos, sin = cos.float(), sin.float()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


class RotaryEmbedding(nn.Module):
    """cos/sin rows by position id.

    The table is built in the dtype of the `inv_freq` buffer, which is cast with the model: in bf16 neighbouring
    positions beyond 256 share a row, and the released weights were trained so. `table_dtype=torch.float32` computes
    the table in fp32 instead; that departs from the originals and is never chosen silently.
    """

    def __init__(self, head_dim: int, base: float = 10000.0, table_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.head_dim, self.base, self.table_dtype = head_dim, base, table_dtype
        self.register_buffer("inv_freq", self.compute_inv_freq())
        self._table: RotaryRows | None = None

    def compute_inv_freq(self, device: torch.device | str | None = None) -> Tensor:
        """[H/2] fp32: base^(-2i/H)."""
        exponent = torch.arange(0, self.head_dim, 2, device=device).float() / self.head_dim
        return 1.0 / (self.base**exponent)

    def table(self, length: int) -> RotaryRows:
        """cos and sin, each [length, H/2], in the model's dtype; kept and grown by doubling."""
        dtype = self.table_dtype or self.inv_freq.dtype
        kept = self._table
        if (
            kept is None
            or kept[0].shape[0] < length
            or kept[0].dtype != dtype
            or kept[0].device != self.inv_freq.device
        ):
            rows = max(length, 2 * kept[0].shape[0] if kept is not None else 0)
            angle = self._angles(rows, dtype)
            self._table = kept = (angle.cos().to(dtype), angle.sin().to(dtype))
        return kept[0][:length], kept[1][:length]

    def _angles(self, length: int, dtype: torch.dtype) -> Tensor:
        """[length, H/2], in the precision in which cos and sin are taken."""
        inv_freq = self.inv_freq
        if inv_freq.dtype != dtype:
            inv_freq = self.compute_inv_freq(self.inv_freq.device).to(dtype)
        return torch.outer(torch.arange(length, device=inv_freq.device, dtype=dtype), inv_freq)

    def rows(self, position_ids_BS: Tensor, max_position: int) -> RotaryRows:
        """Rows for these positions, shaped to broadcast over heads.

        Args:
            position_ids_BS: [B, S] or [1, S].
            max_position: an upper bound of the ids, known on the host, so that nothing waits for the device.
        """
        cos, sin = self.table(max_position + 1)
        return widen(cos[position_ids_BS].unsqueeze(1), sin[position_ids_BS].unsqueeze(1))


def choose_rotate(x: Tensor) -> RotateFn:
    """The fast kernel where Triton and a GPU exist and no gradient is asked for, else torch."""
    if x.is_cuda and not torch.is_grad_enabled():
        from mixins.rotary_triton import rotate_triton

        if rotate_triton is not None:
            return rotate_triton
    return rotate_half_split


class RotaryMixin(BaseMixin):
    """The mixin "rotary" of a plain LLaMA: attention with rotary positions.

    The projections are methods, so that a mixin with experts overrides these two and nothing else; so is the rotation.

    Args:
        hidden_size: D.
        num_heads: over all ranks.
        table_dtype: see `RotaryEmbedding`.
    """

    def __init__(self, hidden_size: int, num_heads: int, *, table_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.rotary_emb = self._make_rotary(hidden_size // num_heads, table_dtype)

    def attention_forward(self, hidden_states: Tensor, mask: Tensor, **kw: Any) -> Tensor:
        """hidden_states [B, S, D] -> [B, S, D]. Needs `rotary_rows`, computed once per forward by the model."""
        kw["layer_id"] = int(kw["layer_id"])
        attention = self.transformer.layers[kw["layer_id"]].attention
        mixed = self._project_qkv(hidden_states, **kw)
        count = attention.num_attention_heads_per_partition
        heads = mixed.unflatten(-1, (3 * count, -1)).transpose(1, 2)  # queries, keys, values
        query, key = self._rotate(heads[:, : 2 * count], kw["rotary_rows"]).split(count, dim=1)
        value = heads[:, 2 * count :]
        dropout = attention.attention_dropout if self.training else None
        context = attention.hooks["attention_fn"](query, key, value, mask, dropout, **kw)
        context = context.transpose(1, 2).reshape(*hidden_states.shape[:2], -1)
        output = self._project_out(context, **kw)
        return attention.output_dropout(output) if self.training else output

    def _make_rotary(self, head_dim: int, table_dtype: torch.dtype | None) -> RotaryEmbedding:
        return RotaryEmbedding(head_dim, table_dtype=table_dtype)

    def _rotate(self, heads: Tensor, rows: RotaryRows) -> Tensor:
        """Queries and keys [B, 2N, S, H], turned."""
        return choose_rotate(heads)(heads, rows)

    def _project_qkv(self, hidden_states: Tensor, *, layer_id: int, **kw: Any) -> Tensor:
        return project(self.transformer.layers[layer_id].attention.query_key_value, hidden_states)

    def _project_out(self, context: Tensor, *, layer_id: int, **kw: Any) -> Tensor:
        return project(self.transformer.layers[layer_id].attention.dense, context)
