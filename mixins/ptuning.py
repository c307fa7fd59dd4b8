"""The mixin "ptuning": learned keys and values that every token sees, in every layer (P-tuning v2, arXiv 2110.07602).

Names and shapes are those of the originals' checkpoints: `mixins.ptuning.prefix.{layer}`, [2, N, P, H] with keys first.
The originals put the prefix behind the sequence and write it into every mask; in front, a causal rule needs no mask.

Legend: B batch, N key/value heads (on this rank), P prefix length, S new tokens, T tokens up to the last, H head dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.base import ZooModel
from mixins.heads import heads_of, heads_of_rank
from mixins.sat_compat import BaseMixin, mpu, non_conflict

PTUNING_NAME = "ptuning"
_INITIAL_STD = 0.01  # as the originals


class PTuningMixin(BaseMixin):
    """Puts P learned keys and values before those of the sequence; they have no position.

    Add it before a key/value cache: the cache then holds the sequence alone, and the prefix is put before all of it.

    Args:
        num_layers: of the language model.
        num_heads: of keys and values, over all ranks.
        head_dim: H.
        prefix_length: P, `--pre_seq_len`.
        seed: of the initial values, which do not depend on the number of ranks.
    """

    def __init__(self, num_layers: int, num_heads: int, head_dim: int, prefix_length: int, *, seed: int = 0) -> None:
        super().__init__()
        if prefix_length < 1:
            raise ValueError(f"the prefix length (pre_seq_len) must be at least 1, got {prefix_length}")
        self.prefix_length = prefix_length
        size, rank = mpu.get_model_parallel_world_size(), mpu.get_model_parallel_rank()
        generator = torch.Generator().manual_seed(seed)
        whole = torch.empty(num_layers, 2, num_heads, prefix_length, head_dim, dtype=torch.float32)
        whole.normal_(std=_INITIAL_STD, generator=generator)
        own = heads_of_rank(num_heads, rank, size)
        self.num_heads = num_heads
        self.prefix = nn.ParameterList(layer[:, own].clone() for layer in whole)
        for parameter in self.prefix:
            parameter.model_parallel = parameter.tensor_model_parallel = True

    def split_dims(self) -> dict[str, int]:
        """Each layer's prefix is divided over model-parallel ranks by heads."""
        return {f"prefix.{layer}": 1 for layer in range(len(self.prefix))}

    def split_heads(self) -> dict[str, int]:
        """Over all ranks, by which each is divided."""
        return dict.fromkeys(self.split_dims(), self.num_heads)

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
        may_look: Tensor | None = None,
        **kw: Any,
    ) -> Tensor:
        """q [B, …, S, H], k and v [B, N, T, H], may_look bool [B or 1, 1, S, T] or None -> as q."""
        if not kw.get("cross_attention"):
            keys, values = (
                part.to(k.dtype).expand(k.shape[0], -1, -1, -1) for part in self.prefix[int(kw["layer_id"])]
            )
            k, v = torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)
            if may_look is not None:
                may_look = F.pad(may_look, (self.prefix_length, 0), value=True)
        # Without a mask, what stands before the last S keys is open to all: the causal rule holds over the sequence.
        return old_impl(q, k, v, mask, dropout_fn, may_look=may_look, **kw)


def add_ptuning(model: ZooModel, prefix_length: int, *, seed: int = 0) -> PTuningMixin:
    """Give `model` a prefix, in the dtype and on the device of its weights; everything else is left as it is.

    Raises:
        ValueError: a length below 1.
        KeyError: it has one already.
    """
    layers = model.transformer.layers
    attention = layers[0].attention
    shared = heads_of(attention.query_key_value)
    mixin = PTuningMixin(
        len(layers),
        shared.num_kv_heads if shared else attention.num_attention_heads,
        attention.hidden_size_per_attention_head,
        prefix_length,
        seed=seed,
    )
    weight = model.transformer.word_embeddings.weight
    mixin.to(device=weight.device, dtype=weight.dtype)
    model.add_mixin(PTUNING_NAME, mixin)
    return mixin
