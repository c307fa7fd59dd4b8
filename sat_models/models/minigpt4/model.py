"""MiniGPT-4: a plain LLaMA that reads BLIP-2's features as tokens (arXiv 2304.10592; v2: arXiv 2310.09478)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mixins.image_embedding import ProjectedImageMixin
from mixins.sat_compat import BaseTransformer
from sat_models.models.common.llama import LLaMAModel
from sat_models.models.minigpt4.config import MiniGPT4Config
from sat_models.vision.eva_vit import JoinedPatchTower
from sat_models.vision.qformer import QueriedTower


class MiniGPT4Model(LLaMAModel):
    """LLaMA + "eva": EVA ViT-g and a Q-Former, or (Llama-2 and v2) EVA ViT-g whose neighbouring patches are joined."""

    config_class = MiniGPT4Config
    rotary_table_dtype = torch.float32

    def __init__(
        self,
        config: MiniGPT4Config,
        transformer: BaseTransformer | None = None,
        parallel_output: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, transformer=transformer, parallel_output=parallel_output, **kwargs)
        self.image_length = config.image_length
        if config.qformer_args is not None:
            tower = QueriedTower(config.eva_args, config.qformer_args)
        else:
            tower = JoinedPatchTower(config.eva_args, config.joined_patches)
        self.add_mixin("eva", ProjectedImageMixin(tower, nn.Linear(config.feature_width, config.hidden_size)))
