"""InternLM-XComposer2: InternLM2 with a CLIP tower, and Partial LoRA for what the tower gives (arXiv 2401.16420)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mixins.image_embedding import ProjectedImageMixin
from mixins.partial_lora import PartialLoRAMixin
from mixins.projector import MLPProjector
from mixins.sat_compat import BaseTransformer
from mixins.tiled_image import TiledImageMixin
from sat_models.models.common.llama import LLaMAModel
from sat_models.models.xcomposer2.config import JOINED, XComposer2Config
from sat_models.vision.clip_vit import CLIPViT


class XComposer2Model(LLaMAModel):
    """LLaMA + "eva" + "plora"."""

    config_class = XComposer2Config
    rotary_table_dtype = torch.float32

    def __init__(
        self,
        config: XComposer2Config,
        transformer: BaseTransformer | None = None,
        parallel_output: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, transformer=transformer, parallel_output=parallel_output, **kwargs)
        self.image_length = config.image_length
        self.add_mixin("eva", self.make_image_mixin(config))
        plora = PartialLoRAMixin(
            config.num_layers, config.hidden_size, config.inner_hidden_size, config.heads, rank=config.plora_rank,
            qkv_rank=config.plora_qkv_rank or config.plora_rank, qkv_scale=config.plora_qkv_scale,
        )  # fmt: skip
        self.add_mixin("plora", plora)

    @classmethod
    def make_image_mixin(cls, config: XComposer2Config) -> ProjectedImageMixin:
        """The mixin "eva": tower and projector, and what the tiled forms put at the ends of lines."""
        tower, width = CLIPViT(config.eva_args), config.eva_args.hidden_size
        if config.tiling is None:
            return ProjectedImageMixin(tower, MLPProjector(width, config.hidden_size))
        projector = MLPProjector(JOINED * JOINED * width, config.hidden_size)
        return TiledImageMixin(tower, projector, side=config.image_size, joined=JOINED, width=width)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_embed_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """As `LLaMAModel.forward`.

        Args:
            image_embed_mask: [B, S], 1 = overwritten by an image embedding and adapted by "plora"; None = none.
            kwargs: `vision_image`, see `ProjectedImageMixin` and `TiledImageMixin`.
        """
        added = self.get_mixin("plora").adding(image_embed_mask)
        return super().forward(
            input_ids, position_ids, attention_mask, image_embed_mask=image_embed_mask, added=added, **kwargs
        )
