"""The EVA2-CLIP tower of CogVLM (`mixins.eva.vit_model` in its checkpoints).

Sizes of the released tower: 63 layers, width 1792, 16 heads (arXiv 2303.15389; CogVLM drops the last block).
"""

from __future__ import annotations

from mixins.vision_tower import DropClassTokenMixin, PostNormLayerMixin
from sat_models.config import VisionTowerConfig
from sat_models.vision.tower import VisionTower


class EVA2CLIPModel(VisionTower):
    """Pixels [N, 3, H, W] -> features [N, P, V] of P patches."""

    def __init__(self, config: VisionTowerConfig) -> None:
        super().__init__(config)
        self.add_mixin("final", DropClassTokenMixin())
        self.add_mixin("newpost", PostNormLayerMixin())
