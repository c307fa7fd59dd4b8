"""The bundled painter `cogview-tiny`.

Legend: B batch, N heads, S tokens, A tokens that are looked at, H head dim.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mixins.patch_codec import PatchCodecMixin
from mixins.sat_compat import BaseTransformer
from sat_models.models.cogview2.model import CogLMModel
from sat_models.models.cogview_tiny.config import CogViewTinyConfig


class CogViewTinyModel(CogLMModel):
    """CogView2's CogLM, which carries the codec of its codes. Behind the text it writes a plan of the image, then the
    codes, row by row."""

    config_class = CogViewTinyConfig
    does = "draw"

    def __init__(self, config: CogViewTinyConfig, transformer: BaseTransformer | None = None, **kwargs: Any) -> None:
        super().__init__(config, transformer, **kwargs)
        self.add_mixin("codec", PatchCodecMixin(config.levels, config.codec_width, config.codec_layers, config.patch))

    def attention_fn(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_fn: Any, **kw: Any) -> Tensor:
        """q [B, N, S, H]; k, v [B, N, A, H] -> [B, N, S, H]. For so short a sequence of narrow heads the plain products
        take a third of the time of torch's fused kernel in bf16 on a CPU, forward and backward."""
        scores = (q * q.shape[-1] ** -0.5) @ k.mT + kw["bias"].to(q.dtype)
        return scores.softmax(-1).to(v.dtype) @ v
