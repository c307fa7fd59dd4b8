"""GLM-4V-9B: GLM-4 with CogVLM2's tower (`modeling_chatglm.py` of THUDM/glm-4v-9b)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from mixins.image_embedding import ConvolvedImageMixin
from mixins.projector import GLUProjector
from mixins.sat_compat import BaseTransformer
from sat_models.models.cogvlm2.config import STRIDE
from sat_models.models.common.llama import LLaMAModel
from sat_models.models.glm4v.config import GLM4VConfig
from sat_models.vision.eva_clip import EVA2CLIPModel


class GLM4VModel(LLaMAModel):
    """LLaMA + "eva". `image_embed_mask` [B, S] marks all places of an image, of its begin and end vectors, too."""

    config_class = GLM4VConfig
    rotary_table_dtype: ClassVar[torch.dtype | None] = torch.float32

    def __init__(
        self,
        config: GLM4VConfig,
        transformer: BaseTransformer | None = None,
        parallel_output: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, transformer=transformer, parallel_output=parallel_output, **kwargs)
        self.image_length = config.image_length
        image = ConvolvedImageMixin(
            EVA2CLIPModel(config.eva_args),
            nn.Conv2d(config.eva_args.hidden_size, config.hidden_size, kernel_size=STRIDE, stride=STRIDE),
            GLUProjector(config.hidden_size, config.hidden_size, config.inner_hidden_size),
            config.hidden_size,
            divisor=config.scaling_factor,
        )
        self.add_mixin("eva", image)
