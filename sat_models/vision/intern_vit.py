"""InternViT, the tower of InternVL.

Sizes of the released towers: 6B with 45 or 48 layers, width 3200, 25 heads, RMSNorms and norms of queries and keys;
300M with 24 layers, width 1024, 16 heads, LayerNorms (InternVL, arXiv 2312.14238; 1.5, arXiv 2404.16821).
"""

from __future__ import annotations

from torch import nn

from mixins.intern_vit import NormedQueryKeyMixin, ScaledLayerMixin, StretchedPositionMixin
from mixins.rms_norm import RMSNorm
from mixins.vision_tower import DropClassTokenMixin
from sat_models.config import InternViTConfig
from sat_models.vision.tower import VisionTower


class InternViT(VisionTower):
    """Pixels [N, 3, H, W] -> features [N, P, V] of the layer that `feature_layer` names, class token dropped."""

    def __init__(self, config: InternViTConfig) -> None:
        super().__init__(config)
        if not config.qkv_bias:
            for layer in self.transformer.layers:
                layer.attention.query_key_value.register_parameter("bias", None)
        self.replace_mixin("pos_embedding", StretchedPositionMixin(config.patch_size))
        self.add_mixin("final", DropClassTokenMixin())
        width, run = config.hidden_size, config.layers_run
        self.add_mixin("scaled", ScaledLayerMixin(config.num_layers, width, run))
        if config.qk_norm:
            heads, epsilon = config.num_attention_heads, config.qk_epsilon or config.layernorm_epsilon
            normed = NormedQueryKeyMixin(config.num_layers, heads, width, layers_run=run, epsilon=epsilon)
            self.add_mixin("qk_norm", normed)
        for mixin in self.mixins.values():
            for part in getattr(mixin, "never_run", ()):
                part.requires_grad_(False)

    @staticmethod
    def _norm(config: InternViTConfig) -> type[nn.Module]:
        return RMSNorm if config.rms_norm else nn.LayerNorm
