"""VisualGLM-6B: a ChatGLM-6B with BLIP-2's picture tokens in its sequence (github.com/THUDM/VisualGLM-6B, e314fb9)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mixins.image_embedding import WholeImageMixin
from mixins.sat_compat import BaseTransformer
from sat_models.models.visualglm.chatglm import ChatGLMModel
from sat_models.models.visualglm.config import VisualGLMConfig
from sat_models.vision.qformer import QueriedTower


class GLMImageModel(QueriedTower):
    """Pixels [N, 3, H, W] -> [N, Q, D]: BLIP-2's queries, projected to the language model's width."""

    def __init__(self, config: VisualGLMConfig) -> None:
        super().__init__(config.eva_args, config.qformer_args)
        self.glm_proj = nn.Linear(config.qformer_args.hidden_size, config.hidden_size)

    def forward(self, image: Tensor) -> Tensor:
        """Pixels, CLIP-normalised. Raises ValueError on another picture size."""
        return self.glm_proj(super().forward(image))


class VisualGLMModel(ChatGLMModel):
    """ChatGLM + "eva". `image_embed_mask` [B, S] marks the slots, `vision_image` [N, 3, H, W] are the pixels."""

    config_class = VisualGLMConfig

    def __init__(
        self,
        config: VisualGLMConfig,
        transformer: BaseTransformer | None = None,
        parallel_output: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, transformer=transformer, parallel_output=parallel_output, **kwargs)
        self.image_length = config.image_length
        self.add_mixin("eva", WholeImageMixin(GLMImageModel(config)))


class FineTuneVisualGLMModel(VisualGLMModel):
    """The name that checkpoints of the original fine-tuning script carry; the same model."""
