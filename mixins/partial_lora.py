"""The mixin "plora": low-rank products that image tokens take in every linear of a layer, besides its own.

`y = W x` for a token of text, `y = W x + scale · B (A x)` for one of an image (Partial LoRA of InternLM-XComposer2,
arXiv 2401.16420, section 3). Over several processes the large matrices are cut as the linears that they stand beside,
and A x, a few numbers a token, is what is sent.

Legend: B batch, S tokens, D width, I inner width, R rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from mixins.expert_routing import ExpertRouting
from mixins.heads import HeadLayout
from mixins.linear import Added, project, qkv_linear
from mixins.sat_compat import BaseMixin, ColumnParallelLinear, RowParallelLinear


class LowRankProduct(nn.Module):
    """`scale · B (A x)`, […, inputs] -> […, outputs], of two linears without bias that are passed in."""

    def __init__(self, A: nn.Module, B: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.A, self.B, self.scale = A, B, scale

    def forward(self, x: Tensor) -> Tensor:
        """[…, inputs] -> […, outputs], each in the layout of the linear that it stands beside."""
        product = _apply(self.B, _apply(self.A, x))
        return product if self.scale == 1.0 else product * self.scale


class PartialLoRAMixin(BaseMixin):
    """Holds the matrices, and says what they add in a forward. It has no hook: "rotary" and "mlp" ask what is `added`.

    Args:
        num_layers, hidden_size, inner_hidden_size, heads: of the language model; heads of all ranks.
        rank: R of all products but one.
        qkv_rank, qkv_scale: R and scale of that to queries, keys and values.
    """

    def __init__(
        self,
        num_layers: int,
        hidden_size: int,
        inner_hidden_size: int,
        heads: HeadLayout,
        *,
        rank: int,
        qkv_rank: int,
        qkv_scale: float = 1.0,
    ) -> None:
        super().__init__()
        column, row = partial(_column, self), partial(_row, self)

        def layers(make: Callable[[], LowRankProduct]) -> nn.ModuleList:
            return nn.ModuleList(make() for _ in range(num_layers))

        def query_key_value() -> LowRankProduct:
            B = qkv_linear(qkv_rank, heads, bias=False, module=self, name="B")
            return LowRankProduct(nn.Linear(hidden_size, qkv_rank, bias=False), B, qkv_scale)

        self.query_key_value = layers(query_key_value)
        self.dense = layers(lambda: row(heads.context_size, rank, hidden_size))
        self.gate_proj = layers(lambda: column(hidden_size, rank, inner_hidden_size))
        self.dense_h_to_4h = layers(lambda: column(hidden_size, rank, inner_hidden_size))
        self.dense_4h_to_h = layers(lambda: row(inner_hidden_size, rank, hidden_size))

    def adding(self, image_mask: Tensor | None) -> Added | None:
        """The addition in a forward over tokens [B, S] of which these are an image's; None: there are none.

        Args:
            image_mask: [B, S], 1 where a token is an image's; None: nowhere. The host reads it once.
        """
        routing = ExpertRouting.from_mask(image_mask)
        return partial(self._add, routing) if routing.has_vision else None

    def _add(self, routing: ExpertRouting, name: str, layer_id: int, x: Tensor, output: Tensor) -> Tensor:
        return routing.add_to_vision(output, x, getattr(self, name)[layer_id])


def _apply(linear: nn.Module, x: Tensor) -> Tensor:
    return linear(x) if isinstance(linear, nn.Linear) else project(linear, x)


def _column(module: nn.Module, inputs: int, rank: int, outputs: int) -> LowRankProduct:
    """Beside a column-parallel linear: A is whole, B is cut as that."""
    B = ColumnParallelLinear(rank, outputs, gather_output=False, bias=False, module=module, name="B")
    return LowRankProduct(nn.Linear(inputs, rank, bias=False), B)


def _row(module: nn.Module, inputs: int, rank: int, outputs: int) -> LowRankProduct:
    """Beside a row-parallel linear: A is cut as that, B is whole."""
    A = RowParallelLinear(inputs, rank, input_is_parallel=True, bias=False, module=module, name="A")
    return LowRankProduct(A, nn.Linear(rank, outputs, bias=False))
