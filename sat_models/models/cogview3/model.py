"""CogView3-Plus: a diffusion transformer that is told the sizes of the image besides the time and the text."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mixins.diffusion_head import DiffusionHeadMixin
from mixins.grid_positions import GridPositionMixin
from mixins.joint_adaln import JointAdaLNMixin
from mixins.patch_text_embedding import PatchTextEmbeddingMixin
from mixins.sat_compat import BaseTransformer
from sat_models.models.cogview3.config import CONDITIONS, CogView3PlusConfig
from sat_models.models.common.diffusion import DiffusionModel, sinusoid, two_linears


class CogView3PlusModel(DiffusionModel):
    """See `DiffusionModel`; `original_size`, `crop` and `target_size` describe the image."""

    config_class: ClassVar[type[CogView3PlusConfig]] = CogView3PlusConfig
    one_for_alike: ClassVar[bool] = True

    def __init__(self, config: CogView3PlusConfig, transformer: BaseTransformer | None = None, **kwargs: Any) -> None:
        super().__init__(config, transformer, **kwargs)
        width, time, patch = config.hidden_size, config.time_embed_dim, config.patch_size
        self.label_emb = nn.Sequential(two_linears(CONDITIONS * config.condition_dim, time))
        patches = PatchTextEmbeddingMixin(config.in_channels, width, patch, config.text_hidden_size)
        self.add_mixin("patch_embed", patches)
        self.add_mixin("adaln", JointAdaLNMixin(config.num_layers, width, time))
        self.add_mixin("final_layer", DiffusionHeadMixin(width, time, patch, config.in_channels))
        self.add_mixin("pos_embed", GridPositionMixin(config.pos_max, width, patch))

    def embedding(
        self,
        latents: Tensor,
        timestep: Tensor,
        original_size: Tensor | None = None,
        crop: Tensor | None = None,
        target_size: Tensor | None = None,
    ) -> Tensor:
        """The vector of time and sizes, [B, E].

        Args:
            original_size: [B, 2], height and width in pixels of the image as it was; None: `target_size`.
            crop: [B, 2], what was cut off above and at the left; None: nothing.
            target_size: [B, 2], height and width in pixels of the result; None: that of `latents`.
        """
        if target_size is None:
            pixels = [size * self.config.pixels_per_latent for size in latents.shape[-2:]]
            target_size = torch.tensor([pixels], device=latents.device).expand(len(latents), -1)
        original_size = target_size if original_size is None else original_size
        crop = torch.zeros_like(target_size) if crop is None else crop
        numbers = torch.cat([x.to(latents.device).float() for x in (original_size, crop, target_size)], dim=1)
        labels = sinusoid(numbers, self.config.condition_dim).flatten(1)
        return super().embedding(latents, timestep) + self.label_emb(labels.to(self.time_embed[0].weight.dtype))

    def _check(self, latents: Tensor, text: Tensor) -> None:
        super()._check(latents, text)
        most = self.config.pos_max * self.config.patch_size
        if max(latents.shape[-2:]) > most:
            raise ValueError(f"latents {list(latents.shape)} are larger than the table of positions, {most} a side")
