"""Rotary position embedding (RoFormer, arXiv 2104.09864), by halves or by neighbours, and attention that uses it.

Legend: B batch, N query heads and G key/value heads on this rank, S tokens, H head dim, R of it that turns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixins.heads import HeadLayout
from mixins.linear import Added, project_with
from mixins.sat_compat import BaseMixin, mpu
from mixins.text_token import AttentionPart, stands_for

RotaryRows = tuple[Tensor, Tensor]
"""cos twice and (-sin, sin), each [B, 1, S, R] in fp32: what a head and a head with its pairs exchanged are multiplied
by; they lie as the pairs do. Their values are those of the table, whatever its dtype."""
RotateFn = Callable[[Tensor, RotaryRows], Tensor]


def rotate_half_split(x_BNSH: Tensor, rows: RotaryRows) -> Tensor:
    """Rotate pairs (i, i + H/2) in fp32 and cast back, as the kernel that the released weights were trained with."""
    cos, sin = rows
    x = x_BNSH.float()
    first, second = x.chunk(2, dim=-1)
    # Two roundings, as the originals have; `addcmul` would have one.
    return (x * cos + torch.cat((second, first), dim=-1) * sin).to(x_BNSH.dtype)


def rotate_neighbours(x_BNSH: Tensor, rows: RotaryRows) -> Tensor:
    """Rotate pairs (2i, 2i + 1) in fp32 and cast back."""
    cos, sin = rows
    x = x_BNSH.float()
    exchanged = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x * cos + exchanged * sin).to(x_BNSH.dtype)


def rotate_first(rotate: RotateFn, x_BNSH: Tensor, rows: RotaryRows) -> Tensor:
    """`rotate` the first R of H; the rest of the head passes."""
    turned = rows[0].shape[-1]
    return torch.cat((rotate(x_BNSH[..., :turned], rows), x_BNSH[..., turned:]), dim=-1)


def widen(cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> RotaryRows:
    """Table rows […, R/2] as `RotaryRows` […, R]."""
    cos, sin = cos.float(), sin.float()
    if interleaved:
        return cos.repeat_interleave(2, dim=-1), torch.stack((-sin, sin), dim=-1).flatten(-2)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


class RotaryEmbedding(nn.Module):
    """cos/sin rows by position id.

    The table is built in the dtype of the `inv_freq` buffer, which is cast with the model: in bf16 neighbouring
    positions beyond 256 share a row, and the released weights were trained so. `table_dtype=torch.float32` computes
    the table in fp32 instead; that departs from the originals and is never chosen silently.
    """

    def __init__(
        self,
        rotary_dim: int,
        base: float = 10000.0,
        table_dtype: torch.dtype | None = None,
        *,
        interleaved: bool = False,
    ) -> None:
        super().__init__()
        self.rotary_dim, self.base, self.table_dtype, self.interleaved = rotary_dim, base, table_dtype, interleaved
        self.register_buffer("inv_freq", self.compute_inv_freq())
        self._table: RotaryRows | None = None

    @classmethod
    def of(cls, heads: HeadLayout, table_dtype: torch.dtype | None = None) -> RotaryEmbedding:
        """The table of such heads."""
        return cls(heads.rotary_dim, heads.rope_theta, table_dtype, interleaved=heads.interleaved)

    def compute_inv_freq(self, device: torch.device | str | None = None) -> Tensor:
        """[R/2] fp32: base^(-2i/R)."""
        exponent = torch.arange(0, self.rotary_dim, 2, device=device).float() / self.rotary_dim
        return 1.0 / (self.base**exponent)

    def table(self, length: int) -> RotaryRows:
        """cos and sin, each [length, R/2], in the model's dtype; kept and grown by doubling."""
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
        """[length, R/2], in the precision in which cos and sin are taken."""
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
        return widen(cos[position_ids_BS].unsqueeze(1), sin[position_ids_BS].unsqueeze(1), interleaved=self.interleaved)


def choose_rotate(x: Tensor, heads: HeadLayout | None = None) -> RotateFn:
    """The fast kernel where Triton and a GPU exist and no gradient is asked for, else torch.

    Args:
        heads: how heads turn; None: whole ones, by halves.
    """
    rotate = rotate_neighbours if heads is not None and heads.interleaved else _choose_halves(x)
    if heads is None or heads.rotary_dim == heads.head_dim:
        return rotate
    return partial(rotate_first, rotate)


def _choose_halves(x: Tensor) -> RotateFn:
    if x.is_cuda and not torch.is_grad_enabled():
        from mixins.rotary_triton import rotate_triton

        if rotate_triton is not None:
            return rotate_triton
    return rotate_half_split


class RotaryMixin(BaseMixin):
    """The mixin "rotary" of a plain LLaMA: attention with rotary positions.

    The projections are methods, so that a mixin with experts overrides these two and nothing else; so is the rotation.

    Args:
        heads: of all ranks.
        table_dtype: see `RotaryEmbedding`.

    Attributes:
        heads: of this rank.
    """

    def __init__(self, heads: HeadLayout, *, table_dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.heads = heads.on_rank(mpu.get_model_parallel_world_size())
        self.rotary_emb = self._make_rotary(heads, table_dtype)

    def attention_forward(self, hidden_states: Tensor, mask: Tensor, **kw: Any) -> Tensor:
        """hidden_states [B, S, D] -> [B, S, D]. Needs `rotary_rows`, computed once per forward by the model."""
        kw["layer_id"] = int(kw["layer_id"])
        attention = self.transformer.layers[kw["layer_id"]].attention
        mixed = self._project_qkv(hidden_states, **kw)
        queries, keys, _ = self.heads.parts
        heads = mixed.unflatten(-1, (self.heads.row_heads, -1)).transpose(1, 2)
        query, key = self._rotate(heads[:, : queries + keys], kw["rotary_rows"]).split((queries, keys), dim=1)
        value = heads[:, queries + keys :]
        if value.requires_grad:
            value = value.contiguous()  # or the backward pass would hold the unturned queries and keys with it
        dropout = attention.attention_dropout if self.training else None
        context = attention.hooks["attention_fn"](query, key, value, mask, dropout, **kw)
        context = context.transpose(1, 2).reshape(*hidden_states.shape[:2], -1)
        output = self._project_out(context, **kw)
        return attention.output_dropout(output) if self.training else output

    @stands_for("attention_forward", "_rotate", "_project_qkv", "_project_out")
    def text_token(self, layer_id: int) -> AttentionPart:
        """The parts that a token of text passes in a layer."""
        attention = self.transformer.layers[layer_id].attention
        return AttentionPart(attention.query_key_value, attention.dense, self.heads, self.rotary_emb)

    def _make_rotary(self, heads: HeadLayout, table_dtype: torch.dtype | None) -> RotaryEmbedding:
        return RotaryEmbedding.of(heads, table_dtype)

    def _rotate(self, heads: Tensor, rows: RotaryRows) -> Tensor:
        """Queries and keys [B, N + G, S, H], turned."""
        return choose_rotate(heads, self.heads)(heads, rows)

    def _project_qkv(self, hidden_states: Tensor, *, layer_id: int, added: Added | None = None, **kw: Any) -> Tensor:
        linear = self.transformer.layers[layer_id].attention.query_key_value
        return project_with(linear, hidden_states, added, "query_key_value", layer_id)

    def _project_out(self, context: Tensor, *, layer_id: int, added: Added | None = None, **kw: Any) -> Tensor:
        linear = self.transformer.layers[layer_id].attention.dense
        return project_with(linear, context, added, "dense", layer_id)
