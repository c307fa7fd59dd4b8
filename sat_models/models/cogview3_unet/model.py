"""CogView3-Base and -Relay: diffusers' UNet, told the sizes of the image besides the time and the text."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from sat_models.models.cogview3_unet.config import CogView3UNetConfig
from sat_models.models.cogview3_unet.keys import modules, network_config
from sat_models.models.common.thin import ThinModel, described, diffusers_class


class CogView3UNetModel(ThinModel):
    """Latents with noise, a time and a text -> the noise in them.

    Args:
        config: sizes.

    Raises:
        MissingPackageError: without diffusers.
    """

    config_class: ClassVar[type[CogView3UNetConfig]] = CogView3UNetConfig

    def __init__(self, config: CogView3UNetConfig) -> None:
        network = diffusers_class("UNet2DConditionModel").from_config(network_config(config))
        super().__init__(config, network, modules(config))

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        original_size: Tensor | None = None,
        crop: Tensor | None = None,
        target_size: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Run the model.

        Args:
            latents: [B, C, h, w], divided by √(1 + σ²).
            timestep: [B], 0 … 999.
            text: [B, T, E]; zeros for no text.
            original_size, crop, target_size: see `described`.
            guidance: [B], of distilled models; None: the usual one.

        Returns:
            The noise in the shape and dtype of `latents`.

        Raises:
            ValueError: latents or a text of another shape, or guidance for a model that is not told it.
        """
        self.check(latents, text)
        kind, width = next(self.parameters()).dtype, self.config.cfg_cond_embed_dim
        sizes = described(latents, self.config.pixels_per_latent, original_size, crop, target_size)
        if guidance is not None and width is None:
            raise ValueError("guidance is for distilled models; this one is guided by a second forward")
        told = None
        if width is not None:
            usual = latents.new_full((len(latents),), self.config.guidance)
            told = guidance_sinusoid(usual if guidance is None else guidance.flatten(), width).to(kind)
        extra = {"text_embeds": text.new_zeros(len(text), 0), "time_ids": torch.cat(sizes, dim=1)}
        found = self.network(
            latents.to(kind), timestep, text.to(kind), timestep_cond=told, added_cond_kwargs=extra, return_dict=False
        )
        return found[0].to(latents.dtype)


def guidance_sinusoid(guidance: Tensor, width: int) -> Tensor:
    """[B] -> [B, width] in fp32: sines, then cosines, of 1000 · guidance, with frequencies from 1 to 1 / 10000."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=guidance.device) * (-math.log(10000) / (half - 1)))
    angles = guidance.float()[:, None] * 1000 * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=1)
