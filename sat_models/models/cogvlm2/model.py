"""CogVLM2: CogVLM on Llama 3, with images four times as large (github.com/THUDM/CogVLM2 at 6700ae7)."""

from __future__ import annotations

from torch import nn

from mixins.image_embedding import ConvolvedImageMixin, ImageMixin
from mixins.projector import GLUProjector
from sat_models.models.cogvlm.model import CogVLMModel
from sat_models.models.cogvlm2.config import STRIDE, CogVLM2Config
from sat_models.vision.eva_clip import EVA2CLIPModel


class CogVLM2Model(CogVLMModel):
    """CogVLM whose "eva" convolves what the tower gives."""

    config_class = CogVLM2Config

    @classmethod
    def make_image_mixin(cls, config: CogVLM2Config) -> ImageMixin:
        """See `CogVLMModel.make_image_mixin`."""
        width = config.eva_args.hidden_size
        return ConvolvedImageMixin(
            EVA2CLIPModel(config.eva_args),
            nn.Conv2d(width, width, kernel_size=STRIDE, stride=STRIDE),
            GLUProjector(width, config.hidden_size, config.inner_hidden_size),
            config.hidden_size,
        )
