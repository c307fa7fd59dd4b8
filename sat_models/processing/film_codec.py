"""Between films and the latents that are made of them: the causal autoencoder of CogVideoX, of diffusers.

Legend: F frames of the latents, C channels, h and w of the latents, T frames, H and W in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sat_models.processing.image_codec import to_levels

_TOGETHER = 2
"""Frames of latents that are decoded at a time, as in the original and in diffusers; the first ones may be three."""


class FilmCodec:
    """Decodes a film piece by piece, so that memory does not grow with its length.

    Args:
        model: diffusers' `AutoencoderKLCogVideoX`, on its device, in its dtype.
        scale: what a film's latents are multiplied by for the model that makes films.
    """

    def __init__(self, model: nn.Module, scale: float) -> None:
        self.model, self.scale = model, scale
        self.frames_per_latent = int(model.config.temporal_compression_ratio)

    @torch.inference_mode()
    def pieces(self, latents: Tensor) -> Iterator[Tensor]:
        """[F, C, h, w] -> the frames [t, 3, H, W] in order, some at a time, -1 … 1 and a bit beyond, fp32 on the CPU.

        F is odd: the first frame of the latents is one frame, each further one several.
        """
        first, cache = next(self.model.parameters()), None
        given = (latents / self.scale).to(first.device, first.dtype).transpose(0, 1).unsqueeze(0)
        start, stop = 0, min(given.shape[2], _TOGETHER + given.shape[2] % _TOGETHER)
        while start < given.shape[2]:
            piece = given[:, :, start:stop]
            if self.model.post_quant_conv is not None:
                piece = self.model.post_quant_conv(piece)
            made, cache = self.model.decoder(piece, conv_cache=cache)
            yield made[0].transpose(0, 1).float().cpu().clone()
            start, stop = stop, stop + _TOGETHER

    def decode(self, latents: Tensor) -> np.ndarray:
        """[F, C, h, w] -> frames [T, H, W, 3], uint8."""
        frames: np.ndarray | None = None
        done = 0
        for piece in self.pieces(latents):
            levels = to_levels(piece).permute(0, 2, 3, 1).numpy()
            if frames is None:
                frames = np.empty((self.frames(len(latents)), *levels.shape[1:]), np.uint8)
            frames[done : done + len(levels)] = levels
            done += len(levels)
        return frames

    def frames(self, latents: int) -> int:
        """Of a film whose latents have so many."""
        return (latents - 1) * self.frames_per_latent + 1

    @torch.inference_mode()
    def moments(self, pixels: Tensor) -> Tensor:
        """[B, 3, T, H, W] in -1 … 1 -> mean and logarithm of the variance of the latents, [B, 2C, F, h, w], unscaled.

        The whole clip at once, as the originals train; diffusers' own `encode` cuts it into pieces of eight frames,
        whose norms see other statistics.
        """
        first = next(self.model.parameters())
        rows = []
        for row in pixels.to(first.device, first.dtype).split(1):
            made, _ = self.model.encoder(row)
            rows.append(made if self.model.quant_conv is None else self.model.quant_conv(made))
        return torch.cat(rows).float().cpu().clone()

    def image_latents(self, image: Image.Image, width: int, height: int, noise: Tensor) -> Tensor:
        """The latents [C, h, w] of an image, unscaled: drawn around their mean, as the originals do.

        Args:
            image: scaled and cut around its middle to the size of the film.
            width, height: in pixels.
            noise: [C, h, w].
        """
        pixels = torch.from_numpy(np.array(filling(image, width, height))).permute(2, 0, 1).float() / 127.5 - 1
        mean, variance = self.moments(pixels[None, :, None])[0, :, 0].chunk(2)
        return mean + (variance.clamp(-30, 20) / 2).exp() * noise


def filling(image: Image.Image, width: int, height: int) -> Image.Image:
    """An image that fills a size: scaled to the longer need, and cut around its middle."""
    factor = max(width / image.width, height / image.height)
    size = max(width, round(image.width * factor)), max(height, round(image.height * factor))
    scaled = image.convert("RGB").resize(size, Image.Resampling.BICUBIC) if size != image.size else image.convert("RGB")
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return scaled.crop((left, top, left + width, top + height))
