"""The mixin "mlp" of a plain LLaMA: SwiGLU, `down(silu(gate(x)) * up(x))`, without biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mixins.kept import remember
from mixins.linear import Added, project_with
from mixins.lm_head import places_read
from mixins.sat_compat import BaseMixin, ColumnParallelLinear
from mixins.text_token import GatedPart, stands_for


def column_linears(count: int, in_size: int, out_size: int, *, module: nn.Module, name: str) -> nn.ModuleList:
    """`count` column-parallel linears without bias."""
    return nn.ModuleList(
        ColumnParallelLinear(in_size, out_size, gather_output=False, bias=False, module=module, name=name)
        for _ in range(count)
    )


class LLaMAMlpMixin(BaseMixin):
    """Adds the gate; up and down projections are the transformer's own `dense_h_to_4h` and `dense_4h_to_h`."""

    def __init__(self, num_layers: int, hidden_size: int, inner_hidden_size: int) -> None:
        super().__init__()
        self.gate_proj = column_linears(
            num_layers, hidden_size, inner_hidden_size, module=self, name="dense_h_to_4h_gate"
        )

    def mlp_forward(self, hidden_states: Tensor, *, added: Added | None = None, **kw: Any) -> Tensor:
        """[B, S, D] -> [B, S, D]. In the last layer places that no logits are made of stay 0: nothing reads them."""
        layer_id = int(kw["layer_id"])
        last = layer_id == len(self.transformer.layers) - 1
        places = places_read(hidden_states, **kw) if last and added is None else None
        if places is None or len(places) == hidden_states[..., 0].numel():
            return self._language_mlp(hidden_states, layer_id, added)
        rows = hidden_states.flatten(0, 1)
        output = self._language_mlp(rows[places], layer_id)
        return torch.zeros_like(rows).index_copy(0, places, output).view(hidden_states.shape)

    @stands_for("mlp_forward", "_language_mlp", "_language_inner")
    def text_token(self, layer_id: int) -> GatedPart:
        """The parts that a token of text passes in a layer."""
        mlp = self.transformer.layers[layer_id].mlp
        return GatedPart(mlp.activation_func, self.gate_proj[layer_id], mlp.dense_h_to_4h, mlp.dense_4h_to_h)

    def _language_mlp(self, hidden_states: Tensor, layer_id: int, added: Added | None = None) -> Tensor:
        down = self.transformer.layers[layer_id].mlp.dense_4h_to_h
        inner = self._language_inner(hidden_states, layer_id, added)
        return project_with(down, inner, added, "dense_4h_to_h", layer_id)

    def _language_inner(self, hidden_states: Tensor, layer_id: int, added: Added | None = None) -> Tensor:
        """The input of the down projection."""
        mlp = self.transformer.layers[layer_id].mlp
        gate = project_with(self.gate_proj[layer_id], hidden_states, added, "gate_proj", layer_id)
        up = project_with(mlp.dense_h_to_4h, hidden_states, added, "dense_h_to_4h", layer_id)
        return gated(mlp.activation_func, gate, up)


def gated(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    """`activation(gate) * up`. With gradients, SiLU's keeps these two alone."""
    if activation is not F.silu or not (gate.requires_grad and up.requires_grad and torch.is_grad_enabled()):
        return activation(gate) * up
    return remember(_SiLUGated.apply(gate, up), _silu_gated, gate, up)


def _silu_gated(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


class _SiLUGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _silu_gated(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), F.silu(gate).mul_(gradient)
