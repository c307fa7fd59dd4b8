"""LLaVA: a plain LLaMA that reads projected CLIP features as tokens (arXiv 2304.08485; 1.5: arXiv 2310.03744)."""

from __future__ import annotations

from typing import Any

import torch

from mixins.image_embedding import ProjectedImageMixin
from mixins.projector import make_projector
from mixins.sat_compat import BaseTransformer
from sat_models.models.common.llama import LLaMAModel
from sat_models.models.llava.config import LLaVAConfig
from sat_models.vision.clip_vit import CLIPViT


class LLaVAModel(LLaMAModel):
    """LLaMA + "eva". `image_embed_mask` [B, S] marks the slots, `vision_image` [N, 3, H, W] are the pixels."""

    config_class = LLaVAConfig
    rotary_table_dtype = torch.float32

    def __init__(
        self,
        config: LLaVAConfig,
        transformer: BaseTransformer | None = None,
        parallel_output: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, transformer=transformer, parallel_output=parallel_output, **kwargs)
        self.image_length = config.image_length
        projector = make_projector(config.projector, config.eva_args.hidden_size, config.hidden_size)
        self.add_mixin("eva", ProjectedImageMixin(CLIPViT(config.eva_args), projector))
