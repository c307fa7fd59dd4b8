"""The mixin "rotary" with a visual expert: image tokens have their own QKV and output projections.

Source: CogVLM, arXiv 2311.03079 §2.1.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from mixins.expert_routing import ExpertRouting
from mixins.linear import project
from mixins.rotary import RotaryMixin
from mixins.sat_compat import ColumnParallelLinear, RowParallelLinear


class LlamaVisionExpertAttnMixin(RotaryMixin):
    """Attention over all tokens together, with projections by modality.

    Args:
        hidden_size: D of the language model.
        num_heads: over all ranks.
        num_layers: of the language model.
        num_vision_layers: how many of them, from the first, have a visual expert (all, in the released models).
    """

    def __init__(self, hidden_size: int, num_heads: int, num_layers: int, num_vision_layers: int | None = None) -> None:
        super().__init__(hidden_size, num_heads)
        count = num_layers if num_vision_layers is None else num_vision_layers
        self.vision_query_key_value_list = nn.ModuleList(
            ColumnParallelLinear(
                hidden_size, 3 * hidden_size, stride=3, gather_output=False, bias=False,
                module=self, name="vision_query_key_value",
            )
            for _ in range(count)
        )  # fmt: skip
        self.vision_dense_list = nn.ModuleList(
            RowParallelLinear(
                hidden_size, hidden_size, input_is_parallel=True, bias=False, module=self, name="vision_dense"
            )
            for _ in range(count)
        )

    def _project_qkv(self, hidden_states: Tensor, *, layer_id: int, routing: ExpertRouting, **kw: Any) -> Tensor:
        language = self.transformer.layers[layer_id].attention.query_key_value
        if layer_id >= len(self.vision_query_key_value_list):
            return project(language, hidden_states)
        vision = self.vision_query_key_value_list[layer_id]
        return routing.apply(hidden_states, partial(project, language), partial(project, vision))

    def _project_out(self, context: Tensor, *, layer_id: int, routing: ExpertRouting, **kw: Any) -> Tensor:
        language = self.transformer.layers[layer_id].attention.dense
        if layer_id >= len(self.vision_dense_list):
            return project(language, context)
        return routing.apply_row_parallel(context, language, self.vision_dense_list[layer_id])
