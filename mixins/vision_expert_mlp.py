"""The mixin "mlp" with a visual expert: image tokens have a SwiGLU of their own.

Source: CogVLM, arXiv 2311.03079 §2.1.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mixins.expert_routing import ExpertRouting
from mixins.gated_mlp import LLaMAMlpMixin, column_linears, gated
from mixins.linear import project
from mixins.sat_compat import RowParallelLinear
from mixins.text_token import GatedPart, stands_for


class LlamaVisionExpertFCMixin(LLaMAMlpMixin):
    """Two SwiGLUs, routed by modality.

    Args:
        hidden_size: D.
        inner_hidden_size: inner width of both experts.
        num_layers: of the language model.
        num_vision_layers: how many of them, from the first, have a visual expert (all, in the released models).
    """

    def __init__(
        self, hidden_size: int, inner_hidden_size: int, num_layers: int, num_vision_layers: int | None = None
    ) -> None:
        super().__init__(num_layers, hidden_size, inner_hidden_size)
        count = num_layers if num_vision_layers is None else num_vision_layers
        self.vision_dense_h_to_4h_list = column_linears(
            count, hidden_size, inner_hidden_size, module=self, name="vision_dense_h_to_4h"
        )
        self.vision_dense_4h_to_h_list = nn.ModuleList(
            RowParallelLinear(
                inner_hidden_size, hidden_size, input_is_parallel=True, bias=False,
                module=self, name="vision_dense_4h_to_h",
            )
            for _ in range(count)
        )  # fmt: skip
        self.vision_gate_proj = column_linears(
            count, hidden_size, inner_hidden_size, module=self, name="vision_dense_h_to_4h_gate"
        )

    def mlp_forward(self, hidden_states: Tensor, *, routing: ExpertRouting, **kw: Any) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        layer_id = int(kw["layer_id"])
        if layer_id >= len(self.vision_gate_proj):
            return self._language_mlp(hidden_states, layer_id)
        return routing.apply_row_parallel(
            hidden_states,
            self.transformer.layers[layer_id].mlp.dense_4h_to_h,
            self.vision_dense_4h_to_h_list[layer_id],
            lambda tokens: self._language_inner(tokens, layer_id),
            lambda tokens: self._vision_inner(tokens, layer_id),
        )

    @stands_for("mlp_forward", "_language_mlp", "_language_inner")
    def text_token(self, layer_id: int) -> GatedPart:
        """As in a LLaMA: a token of text passes no visual expert."""
        return super().text_token(layer_id)

    def _vision_inner(self, hidden_states: Tensor, layer_id: int) -> Tensor:
        activation = self.transformer.layers[layer_id].mlp.activation_func
        gate = project(self.vision_gate_proj[layer_id], hidden_states)
        return gated(activation, gate, project(self.vision_dense_h_to_4h_list[layer_id], hidden_states))
