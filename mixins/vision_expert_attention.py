"""The mixin "rotary" with a visual expert: image tokens have their own QKV and output projections.

Source: CogVLM, arXiv 2311.03079 §2.1.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from mixins.expert_routing import ExpertRouting
from mixins.heads import HeadLayout
from mixins.linear import project, qkv_linear
from mixins.rotary import RotaryMixin
from mixins.sat_compat import RowParallelLinear
from mixins.text_token import AttentionPart, stands_for


class LlamaVisionExpertAttnMixin(RotaryMixin):
    """Attention over all tokens together, with projections by modality.

    Args:
        hidden_size: D of the language model.
        heads: of all ranks.
        num_layers: of the language model.
        num_vision_layers: how many of them, from the first, have a visual expert (all, in the released models).
        vision_qkv_bias: whether the visual expert's queries, keys and values have biases.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: HeadLayout,
        num_layers: int,
        num_vision_layers: int | None = None,
        *,
        vision_qkv_bias: bool = False,
    ) -> None:
        super().__init__(heads)
        count = num_layers if num_vision_layers is None else num_vision_layers
        self.vision_query_key_value_list = nn.ModuleList(
            qkv_linear(hidden_size, heads, bias=vision_qkv_bias, module=self, name="vision_query_key_value")
            for _ in range(count)
        )
        self.vision_dense_list = nn.ModuleList(
            RowParallelLinear(
                heads.context_size, hidden_size, input_is_parallel=True, bias=False, module=self, name="vision_dense"
            )
            for _ in range(count)
        )

    @stands_for("attention_forward", "_rotate", "_project_qkv", "_project_out")
    def text_token(self, layer_id: int) -> AttentionPart:
        """As in a LLaMA: a token of text passes no visual expert."""
        return super().text_token(layer_id)

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
