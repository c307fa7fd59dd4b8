"""SAT's parallel linears as the language model's hooks run them: the same product, with less around it in inference."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.heads import HeadLayout
from mixins.parallel import sum_copies
from mixins.sat_compat import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding, mpu


def mark_heads(linear: ColumnParallelLinear, heads: HeadLayout) -> None:
    """Say that a linear makes such queries, keys and values: checkpoints, LoRA and training ask it (`heads_of`).

    Its outputs are those of `heads.spread`; random weights of heads that several ranks hold are made one.
    """
    if heads.group == 1:
        return
    linear.head_layout = heads
    for value in linear.parameters():
        if not value.is_meta:
            value.data.copy_(sum_copies(value.data, heads.parts, first_only=True))


def qkv_linear(in_size: int, heads: HeadLayout, *, bias: bool, module: nn.Module, name: str) -> ColumnParallelLinear:
    """A column-parallel projection to queries, keys and values; `heads` are those of all ranks."""
    spread = heads.spread(mpu.get_model_parallel_world_size())
    linear = ColumnParallelLinear(
        in_size, spread.row_size, stride=spread.stride, gather_output=False, bias=bias, module=module, name=name
    )
    mark_heads(linear, heads)
    return linear


Added = Callable[[str, int, Tensor, Tensor], Tensor]
"""A mixin's change to a linear's product: name of the linear, layer, what went in and came
out -> what takes its place. It travels with the keywords of a forward."""


def project(linear: nn.Module, x: Tensor) -> Tensor:
    """`linear(x)`, […, inputs] -> […, outputs].

    Without gradients and with the whole weight in this process, what SAT puts around the product (autograd functions
    that send nothing) is left out, and on a CPU one token in fp32 is multiplied as a vector, which reads the weight
    faster than a matrix product with one row. Wrapped, quantised and hooked linears are called as they are.
    """
    if torch.is_grad_enabled() or linear._forward_hooks or linear._forward_pre_hooks:
        return linear(x)
    if not is_whole(linear) or linear.bias is not None:
        return linear(x)
    if x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() == x.shape[-1]:
        return torch.mv(linear.weight, x.reshape(-1)).view(*x.shape[:-1], -1)
    return F.linear(x, linear.weight)


def project_with(linear: nn.Module, x: Tensor, added: Added | None, name: str, layer_id: int) -> Tensor:
    """`project`, and what is `added` to the linear of that name in a layer; None: nothing."""
    output = project(linear, x)
    return output if added is None else added(name, layer_id, x, output)


def embed(words: nn.Module, input_ids: Tensor) -> Tensor:
    """`words(input_ids)`, [B, S] -> [B, S, D]; without gradients and with the whole vocabulary here, as one look-up."""
    whole = type(words) is VocabParallelEmbedding and words.weight.shape[0] == words.num_embeddings
    if torch.is_grad_enabled() or not whole or words._forward_hooks or words._forward_pre_hooks:
        return words(input_ids)
    return F.embedding(input_ids, words.weight)


def is_whole(linear: nn.Module) -> bool:
    """True if it is SAT's own linear and this process has all of it. One whose product is summed has no bias then."""
    if type(linear) is ColumnParallelLinear:
        return linear.output_size_per_partition == linear.output_size
    return (
        type(linear) is RowParallelLinear
        and linear.bias is None
        and linear.input_size_per_partition == linear.input_size
    )
