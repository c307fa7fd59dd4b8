"""EVA ViT-g, the tower of BLIP-2 that VisualGLM and MiniGPT-4 read.

Sizes of the released tower: 39 layers, width 1408, 16 heads, 224 px (EVA, arXiv 2211.07636; BLIP-2, arXiv 2301.12597,
drops the last block and puts a norm behind it).
"""

from __future__ import annotations

from torch import Tensor, nn

from mixins.vision_tower import FinalNormMixin
from sat_models.config import EVAViTConfig
from sat_models.vision.tower import VisionTower


class EVAViT(VisionTower):
    """Pixels [N, 3, H, W] -> features [N, 1 + P, V], the class token first; pre-norm layers (SAT's own)."""

    def __init__(self, config: EVAViTConfig) -> None:
        super().__init__(config)
        self.add_mixin("cls", FinalNormMixin(config.hidden_size))


class JoinedPatchTower(nn.Module):
    """EVA ViT-g without its class token, whose neighbouring patches make one token: [N, 3, H, W] -> [N, P / J, J · V].

    Args:
        config: of the tower.
        joined: J.
    """

    def __init__(self, config: EVAViTConfig, joined: int) -> None:
        super().__init__()
        self.vit, self.joined = EVAViT(config), joined

    def forward(self, image: Tensor) -> Tensor:
        """Pixels, CLIP-normalised. Raises ValueError on another picture size."""
        return self.vit(image)[:, 1:].unflatten(1, (-1, self.joined)).flatten(2)
