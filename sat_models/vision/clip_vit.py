"""The CLIP ViT of LLaVA.

Sizes of the released tower: ViT-L/14, 24 layers, width 1024, 16 heads, 224 or 336 px (CLIP, arXiv 2103.00020; LLaVA,
arXiv 2304.08485, takes the features of the last layer but one).
"""

from __future__ import annotations

import torch
from torch import Tensor

from mixins.vision_tower import DropClassTokenMixin, EarlyFeatureMixin
from sat_models.config import CLIPTowerConfig
from sat_models.vision.tower import VisionTower


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation, x · sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


class CLIPViT(VisionTower):
    """Pixels [N, 3, H, W] -> features [N, P, V] of the layer that `feature_layer` names, class token dropped."""

    activation = staticmethod(quick_gelu)
    patch_bias = False

    def __init__(self, config: CLIPTowerConfig) -> None:
        super().__init__(config)
        self.add_mixin("final", DropClassTokenMixin())
        early = EarlyFeatureMixin(
            config.hidden_size, config.layernorm_epsilon, config.layers_run, last_norm=config.LAST_NORM
        )
        self.add_mixin("early", early)
        for part in early.never_run:
            part.requires_grad_(False)
