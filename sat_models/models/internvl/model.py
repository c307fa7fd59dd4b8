"""InternVL: a language model that reads tiles of images as tokens (arXiv 2312.14238; 1.5: arXiv 2404.16821)."""

from __future__ import annotations

from typing import Any

import torch

from mixins.image_embedding import ShuffledImageMixin
from mixins.projector import NormedMLPProjector
from mixins.sat_compat import BaseTransformer
from sat_models.models.common.llama import LLaMAModel
from sat_models.models.internvl.config import InternVLConfig
from sat_models.vision.intern_vit import InternViT


class InternVLModel(LLaMAModel):
    """LLaMA + "eva". `image_embed_mask` [B, S] marks the slots, `vision_image` [T, 3, H, W] are the tiles in order."""

    config_class = InternVLConfig
    rotary_table_dtype = torch.float32

    def __init__(
        self,
        config: InternVLConfig,
        transformer: BaseTransformer | None = None,
        parallel_output: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, transformer=transformer, parallel_output=parallel_output, **kwargs)
        self.image_length = config.image_length
        tower, joined = config.eva_args, config.joined
        projector = NormedMLPProjector(joined * joined * tower.hidden_size, config.hidden_size)
        by_columns = config.pixel_shuffle == "v1"
        self.add_mixin("eva", ShuffledImageMixin(InternViT(tower), projector, joined, by_columns=by_columns))
