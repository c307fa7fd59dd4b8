"""CogVLM: a LLaMA with an image in its sequence and a visual expert in every layer (arXiv 2311.03079)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mixins.expert_routing import ExpertRouting
from mixins.image_embedding import ImageMixin
from mixins.projector import GLUProjector
from mixins.sat_compat import BaseTransformer
from mixins.vision_expert_attention import LlamaVisionExpertAttnMixin
from mixins.vision_expert_mlp import LlamaVisionExpertFCMixin
from sat_models.models.cogvlm.config import CogVLMConfig
from sat_models.models.common.llama import LLaMAModel
from sat_models.vision.eva_clip import EVA2CLIPModel


class CogVLMModel(LLaMAModel):
    """LLaMA + "eva", with "mlp" and "rotary" exchanged for their expert versions."""

    config_class = CogVLMConfig
    has_image_positions = False
    """True if a learned position is added to the image tokens before the projector."""

    def __init__(
        self,
        config: CogVLMConfig,
        transformer: BaseTransformer | None = None,
        parallel_output: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, transformer=transformer, parallel_output=parallel_output, **kwargs)
        self.image_length = config.image_length
        self.add_mixin("eva", self.make_image_mixin(config))
        self.del_mixin("mlp")
        self.add_mixin("mlp", LlamaVisionExpertFCMixin(config.hidden_size, config.inner_hidden_size, config.num_layers))
        self.del_mixin("rotary")
        rotary = LlamaVisionExpertAttnMixin(
            config.hidden_size, config.heads, config.num_layers, vision_qkv_bias=config.vision_qkv_bias
        )
        self.add_mixin("rotary", rotary)

    @classmethod
    def make_image_mixin(cls, config: CogVLMConfig) -> ImageMixin:
        """The mixin "eva": tower and projector."""
        tower = EVA2CLIPModel(config.eva_args)
        projector = GLUProjector(config.eva_args.hidden_size, config.hidden_size, config.inner_hidden_size)
        positions = (config.image_length, config.eva_args.hidden_size) if cls.has_image_positions else None
        return ImageMixin(tower, projector, config.hidden_size, positions=positions)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        vision_expert_mask: Tensor | None = None,
        image_embed_mask: Tensor | None = None,
        vision_image: Tensor | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """As `LLaMAModel.forward`, with a picture.

        Args:
            vision_expert_mask: [B, S], 1 = the visual expert handles this token; None = none of them.
            image_embed_mask: [B, S], 1 = overwritten by an image embedding (begin and end included).
            vision_image: pixels [N, 3, H, W]; None = text only, the tower is not run.
        """
        return super().forward(
            input_ids,
            position_ids,
            attention_mask,
            routing=ExpertRouting.from_mask(vision_expert_mask),
            image_embed_mask=image_embed_mask,
            vision_image=vision_image,
            **kwargs,
        )


class FineTuneTrainCogVLMModel(CogVLMModel):
    """The name that checkpoints of the original fine-tuning script carry; the same model."""


class FineTuneTestCogVLMModel(CogVLMModel):
    """The name that checkpoints of the original fine-tuning script carry after merging; the same model."""
