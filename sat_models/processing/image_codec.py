"""Between images and the latents that a painter makes: the autoencoder of diffusers.

Legend: B images, C channels, h and w of the latents, H and W in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from sat_models.errors import MissingPackageError


class ImageCodec(Protocol):
    """What a painter asks of its codec."""

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """[B, C, h, w] -> B images."""

    def moments(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in -1 … 1 -> mean and logarithm of the variance of their latents, [B, 2C, h, w], unscaled."""

    def latents(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in -1 … 1 -> [B, C, h, w]."""


class KLCodec:
    """An `ImageCodec` with diffusers' `AutoencoderKL`.

    Args:
        model: on its device, in its dtype.
        scale: what an image's latents are multiplied by for the painter.
    """

    def __init__(self, model: nn.Module, scale: float) -> None:
        self.model, self.scale = model, scale

    def decode(self, latents: Tensor) -> list[Image.Image]:
        """See `ImageCodec`."""
        return to_images(self.pixels(latents))

    @torch.inference_mode()
    def pixels(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, H, W], -1 … 1 and a little beyond, fp32 on the CPU; one image at a time."""
        first = next(self.model.parameters())
        rows = (latents / self.scale).to(first.device, first.dtype).split(1)
        return torch.cat([self.model.decode(row).sample.float().cpu() for row in rows]).clone()

    def latents(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in -1 … 1 -> the mean of their latents as the painter takes them, [B, C, h, w]."""
        return self.moments(pixels).chunk(2, dim=1)[0] * self.scale

    @torch.inference_mode()
    def moments(self, pixels: Tensor) -> Tensor:
        """See `ImageCodec`."""
        first = next(self.model.parameters())
        rows = pixels.to(first.device, first.dtype).split(1)
        return torch.cat([self.model.encode(row).latent_dist.parameters.float().cpu() for row in rows]).clone()


def to_images(pixels: Tensor) -> list[Image.Image]:
    """[B, 3, H, W] in -1 … 1 -> RGB images."""
    return [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy(), "RGB") for image in to_levels(pixels).cpu()]


def to_levels(pixels: Tensor) -> Tensor:
    """-1 … 1 -> 0 … 255, uint8; what is beyond is cut off."""
    return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """The inverse of `to_images`."""
    levels = [torch.frombuffer(bytearray(one.convert("RGB").tobytes()), dtype=torch.uint8) for one in images]
    whole = [level.view(one.height, one.width, 3) for level, one in zip(levels, images, strict=True)]
    return torch.stack(whole).permute(0, 3, 1, 2).float() / 127.5 - 1


def require_diffusers(what: str = "the image decoder of a painter") -> Any:
    """The package. Raises MissingPackageError, which says what it is needed for."""
    try:
        import diffusers
    except ImportError as error:
        raise MissingPackageError("diffusers", "draw", what) from error
    return diffusers
