"""Parts that every process holds and computes whole, because the number of processes does not divide them.

A tower with 25 heads (InternViT-6B) cannot be cut in two, nor can a vocabulary of 92553 words (InternVL on InternLM2).
They are small beside the language model, so each process of a split model keeps all of them, as it keeps projectors.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from mixins.sat_compat import (
    BaseTransformer,
    ColumnParallelLinear,
    RowParallelLinear,
    as_one_process,
    mpu,
    unscaled_init_method,
)


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

    @classmethod
    def of(cls, linear: nn.Linear) -> WholeLinear:
        """One with the weights of a plain linear, which no process cuts."""
        whole = cls.__new__(cls)
        nn.Module.__init__(whole)
        whole.in_features, whole.out_features = linear.in_features, linear.out_features
        whole.weight, whole.bias = linear.weight, linear.bias
        whole.dim, whole.parts, whole.divisible_by = 0, (1,), 0
        return whole

    @property
    def input_size(self) -> int:
        """As that of a parallel linear."""
        return self.in_features

    @property
    def output_size(self) -> int:
        """As that of a parallel linear."""
        return self.out_features


class WholeEmbedding(nn.Embedding):
    """Stands for SAT's embedding that the processes share.

    Attributes:
        dim, parts, divisible_by: as those of `WholeLinear`.
    """

    dim, parts = 0, (1,)

    def __init__(self, words: int, hidden_size: int) -> None:
        super().__init__(words, hidden_size)
        self.divisible_by = words
        unscaled_init_method(0.02)(self.weight)


def is_indivisible(number: int) -> bool:
    """True if the processes that share the model do not divide it."""
    return bool(number % mpu.get_model_parallel_world_size())


def head_of_words(make: Callable[[], ColumnParallelLinear], words: int) -> nn.Module:
    """An output projection that is cut by words where the number of processes divides them, and whole elsewhere."""
    if is_indivisible(words):
        with as_one_process():
            return WholeLinear(make(), words)
    head = make()
    head.divisible_by = words
    return head


def whole_where_indivisible(make: Callable[[], BaseTransformer], divisible_by: int) -> BaseTransformer:
    """A transformer that is cut over the processes where their number divides `divisible_by`, and whole elsewhere.

    Its linears say which (`divisible_by`), so that checkpoints of either kind load at any number of processes.
    """
    whole = is_indivisible(divisible_by)
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
