"""CogView4: diffusers' transformer, told the sizes of the image besides the time and the text."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sat_models.models.cogview4.config import CogView4Config
from sat_models.models.cogview4.keys import network_config
from sat_models.models.common.thin import ThinModel, described, diffusers_class


class CogView4Model(ThinModel):
    """Latents with noise, a time and a text -> noise less image.

    Args:
        config: sizes.

    Raises:
        MissingPackageError: without diffusers.
    """

    config_class: ClassVar[type[CogView4Config]] = CogView4Config

    def __init__(self, config: CogView4Config) -> None:
        network = diffusers_class("CogView4Transformer2DModel").from_config(network_config(config))
        super().__init__(config, network, ((n, n) for n, module in network.named_modules() if module._parameters))

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        original_size: Tensor | None = None,
        crop: Tensor | None = None,
        target_size: Tensor | None = None,
    ) -> Tensor:
        """Run the model.

        Args:
            latents: [B, C, h, w].
            timestep: [B], 0 … 1000.
            text: [B, T, E].
            original_size, crop, target_size: see `described`.

        Returns:
            Noise less image in the shape and dtype of `latents`.

        Raises:
            ValueError: latents or a text of another shape.
        """
        self.check(latents, text)
        kind = next(self.parameters()).dtype
        sizes = described(latents, self.config.pixels_per_latent, original_size, crop, target_size)
        original, cropped, target = (size.to(kind) for size in sizes)
        found = self.network(
            hidden_states=latents.to(kind), encoder_hidden_states=text.to(kind), timestep=timestep,
            original_size=original, crop_coords=cropped, target_size=target, return_dict=False,
        )  # fmt: skip
        return found[0].to(latents.dtype)
