"""Parts that every process holds and computes whole, because the number of processes does not divide them.

A tower with 25 heads (InternViT-6B) cannot be cut in two. It is small beside the language model, so each process of a
split model keeps all of it, as it keeps projectors and embeddings.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mixins.sat_compat import BaseTransformer, ColumnParallelLinear, RowParallelLinear, as_one_process, mpu


class WholeLinear(nn.Linear):
    """Stands for a parallel linear of one process.

    Attributes:
        dim, parts: where the weight is cut in checkpoints of numbers of parts that divide it, as `SplitRule` has them.
        divisible_by: numbers of processes that divide this cut it.
    """

    def __init__(self, linear: ColumnParallelLinear | RowParallelLinear, divisible_by: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.input_size, linear.output_size
        self.weight = nn.Parameter(linear.weight.detach())
        self.register_parameter("bias", None if linear.bias is None else nn.Parameter(linear.bias.detach()))
        stride = getattr(linear, "stride", 1)
        self.dim = 0 if isinstance(linear, ColumnParallelLinear) else 1
        self.parts = (1,) * stride if isinstance(stride, int) else tuple(stride)
        self.divisible_by = divisible_by


def whole_where_indivisible(make: Callable[[], BaseTransformer], divisible_by: int) -> BaseTransformer:
    """A transformer that is cut over the processes where their number divides `divisible_by`, and whole elsewhere.

    Its linears say which (`divisible_by`), so that checkpoints of either kind load at any number of processes.
    """
    whole = bool(divisible_by % mpu.get_model_parallel_world_size())
    if whole:
        with as_one_process():
            transformer = make()
    else:
        transformer = make()
    for name, module in list(transformer.named_modules()):
        if isinstance(module, ColumnParallelLinear | RowParallelLinear):
            module.divisible_by = divisible_by
            if whole:
                transformer.set_submodule(name, WholeLinear(module, divisible_by))
    return transformer
