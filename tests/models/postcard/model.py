"""Its wiring."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mixins.image_embedding import ImageEmbedding
from mixins.sat_compat import BaseTransformer
from postcard.config import PostcardConfig
from sat_models.models.common.llama import LLaMAModel


class StampedPatches(ImageEmbedding):
    """Patches of pixels, projected, with a learned stamp added to each."""

    def __init__(self, config: PostcardConfig) -> None:
        super().__init__()
        tower = config.eva_args
        self.patches = nn.Conv2d(tower.in_channels, config.hidden_size, tower.patch_size, tower.patch_size)
        self.stamp = nn.Parameter(torch.zeros(config.hidden_size))
        self.value = config.stamp_value

    def encode_images(self, vision_image: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] -> [N, P, D]."""
        return self.patches(vision_image).flatten(2).transpose(1, 2) + self.value * self.stamp


class PostcardModel(LLaMAModel):
    """LLaMA + "eva"."""

    config_class = PostcardConfig

    def __init__(
        self,
        config: PostcardConfig,
        transformer: BaseTransformer | None = None,
        parallel_output: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, transformer=transformer, parallel_output=parallel_output, **kwargs)
        self.image_length = config.image_length
        self.add_mixin("eva", StampedPatches(config))
