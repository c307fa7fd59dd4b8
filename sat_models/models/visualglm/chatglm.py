"""The other base of the zoo: ChatGLM-6B, made of "chatglm-final", "chatglm-attn" and "chatglm-layer".

Legend: B batch, S tokens.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixins.glm_block import BlockRotaryMixin, ScaledResidualMixin
from mixins.kv_cache import CACHE_NAME
from mixins.lm_head import LMMixin
from mixins.sat_compat import BaseTransformer
from sat_models.models.common.activations import tanh_gelu
from sat_models.models.common.decoder import DecoderModel
from sat_models.models.visualglm.config import ChatGLMConfig


class ChatGLMModel(DecoderModel):
    """LayerNorm, biases, tanh-GELU; positions in two rows; all before the answer see each other.

    `position_ids` are [B, 2, S]: the first row counts the context and stays at the place of `[gMASK]` in the answer,
    the second is 0 in the context and counts 1, 2, … from `<sop>` on. Without a mask, those with 0 are seen by all.

    Args:
        config: sizes.
        transformer: an existing `BaseTransformer` to share; made from `config` when None.
        parallel_output: SAT's flag, kept for its signature: the logits are gathered in either case.
    """

    config_class = ChatGLMConfig
    rotary_name = "chatglm-attn"

    def __init__(
        self,
        config: ChatGLMConfig,
        transformer: BaseTransformer | None = None,
        parallel_output: bool = True,
        **kwargs: Any,
    ) -> None:
        if transformer is None:
            transformer = self._base_transformer(
                config, layernorm=nn.LayerNorm, activation_func=tanh_gelu, parallel_output=parallel_output, **kwargs
            )
        super().__init__(config, transformer=transformer)
        self.config = config
        self.add_mixin("chatglm-final", LMMixin(config.vocab_size, config.hidden_size))
        self.add_mixin("chatglm-attn", BlockRotaryMixin(config.heads))
        self.add_mixin("chatglm-layer", ScaledResidualMixin(config.residual_scale))

    def default_positions(self, input_ids: Tensor) -> Tensor:
        """Positions [B, 2, S] of prompts that hold `[gMASK]` or `[MASK]`, and `<sop>`. Raises ValueError for others."""
        config, tokens = self.config, torch.arange(input_ids.shape[1], device=input_ids.device)
        start = _first(input_ids == config.bos_token_id, f"<sop> ({config.bos_token_id})")
        gmask = input_ids == config.gmask_token_id
        masks = gmask if bool(gmask.any()) else input_ids == config.mask_token_id
        mask = _first(masks, f"[gMASK] ({config.gmask_token_id}) or [MASK] ({config.mask_token_id})")
        answer = (tokens - start + 1).clamp(min=0)
        return torch.stack((torch.where(answer > 0, mask, tokens), answer), dim=1)

    def next_positions(self, position_ids: Tensor) -> Tensor:
        """Position ids [B, 2, 1] of the token after the last of `position_ids` [B, 2, S]: the second row counts."""
        place, answer = position_ids[..., -1:].split(1, dim=1)
        return torch.cat((place, answer + 1), dim=1)

    def _default_mask(self, position_ids: Tensor) -> Tensor | None:
        """[B, 1, S, T]: the context, and what came before; None where that is the causal mask."""
        context = position_ids[:, 1] == 0
        tokens = context.shape[1]
        if tokens == 1 or not bool(context.any()):
            return None
        cached = self.mixins[CACHE_NAME].length if CACHE_NAME in self.mixins else 0
        visible = torch.ones(tokens, tokens, dtype=torch.bool, device=context.device).tril() | context[:, None]
        return F.pad(visible, (cached, 0), value=True)[:, None]


def _first(found: Tensor, what: str) -> Tensor:
    """Index of the first True of each row [B, 1]."""
    if not bool(found.any(dim=1).all()):
        raise ValueError(f"position_ids were not given and cannot be made: a row of input_ids has no {what}")
    return found.int().argmax(dim=1, keepdim=True)
