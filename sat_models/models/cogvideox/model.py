"""CogVideoX: a diffusion transformer over all frames of a film at once.

Source: github.com/THUDM/CogVideo at v1.0 and e519ece, `sat/dit_video_concat.py`.
Legend: B batch, F frames of the latents, C channels, h and w of the latents, T text tokens, E width of the time's
vector.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mixins.diffusion_head import WeightedDiffusionHeadMixin
from mixins.film_positions import FilmRotaryMixin, FilmTableMixin, StoredFilmRotaryMixin
from mixins.joint_adaln import NormedJointAdaLNMixin
from mixins.patch_text_embedding import ConvolvedPatchTextEmbeddingMixin, PatchTextEmbeddingMixin
from mixins.sat_compat import BaseMixin, BaseTransformer
from sat_models.models.cogvideox.config import CogVideoXConfig
from sat_models.models.common.diffusion import DiffusionModel, sinusoid, two_linears

_OFS = 2.0
"""What the original says wherever an image is given."""


class CogVideoXModel(DiffusionModel):
    """See `DiffusionModel`; kinds that take an image are given its latents beside those of the film."""

    config_class: ClassVar[type[CogVideoXConfig]] = CogVideoXConfig
    affine_norms: ClassVar[bool] = True
    makes_films: ClassVar[bool] = True

    def __init__(self, config: CogVideoXConfig, transformer: BaseTransformer | None = None, **kwargs: Any) -> None:
        super().__init__(config, transformer, **kwargs)
        width, time, patch, frames = (
            config.hidden_size, config.time_embed_dim, config.patch_size, config.patch_frames
        )  # fmt: skip
        if config.unused_positions:
            self.transformer.position_embeddings = nn.Embedding(config.unused_positions, width)
        if config.ofs_dim:
            self.ofs_embed = two_linears(config.ofs_dim, time)
        self.add_mixin("pos_embed", _positions(config))
        patches = ConvolvedPatchTextEmbeddingMixin if frames == 1 else PatchTextEmbeddingMixin
        embedding = patches(config.in_channels, width, patch, config.text_hidden_size, patch_frames=frames)
        self.add_mixin("patch_embed", embedding)
        head_dim = width // config.num_attention_heads
        self.add_mixin("adaln_layer", NormedJointAdaLNMixin(config.num_layers, width, time, head_dim))
        head = WeightedDiffusionHeadMixin(width, time, patch, config.out_channels, patch_frames=frames)
        self.add_mixin("final_layer", head)

    @property
    def never_run(self) -> tuple[nn.Module, ...]:
        """What checkpoints carry and no forward reads."""
        return (self.transformer.position_embeddings,) if self.config.unused_positions else ()

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        image_latents: Tensor | None = None,
        ofs: Tensor | None = None,
    ) -> Tensor:
        """As `DiffusionModel.forward`.

        Args:
            image_latents: as `latents`; for kinds that take an image, and for these alone: the image's in the first
                frame, zeros in the others.
            ofs: [B]; of CogVideoX 1.5 with an image. None: 2, as always in the original.

        Raises:
            ValueError: also an image for a kind that takes none, or none for one that does.
        """
        if (image_latents is not None) != self.config.takes_image:
            wants = "image_latents, and none were given" if self.config.takes_image else "no image_latents"
            raise ValueError(f"this CogVideoX takes {wants}")
        if image_latents is not None:
            if image_latents.shape != latents.shape:
                raise ValueError(f"image_latents are {list(image_latents.shape)}, latents {list(latents.shape)}")
            latents = torch.cat((latents, image_latents.to(latents.dtype)), dim=2)
        return super().forward(latents, timestep, text, ofs=ofs)

    def embedding(self, latents: Tensor, timestep: Tensor, ofs: Tensor | None = None) -> Tensor:
        """The vector of time and `ofs`, [B, E]."""
        whole = super().embedding(latents, timestep)
        if not self.config.ofs_dim:
            if ofs is not None:
                raise ValueError("this CogVideoX is told no ofs")
            return whole
        ofs = latents.new_full((len(latents),), _OFS) if ofs is None else ofs
        return whole + self.ofs_embed(sinusoid(ofs.to(latents.device), self.config.ofs_dim).to(whole.dtype))

    def _check(self, latents: Tensor, text: Tensor) -> None:
        super()._check(latents, text)
        config, frames = self.config, latents.shape[1]
        if frames % config.patch_frames:
            raise ValueError(
                f"latents {list(latents.shape)} have {frames} frames, not a multiple of {config.patch_frames}"
            )
        if config.stored_positions and text.shape[1] != config.text_length:
            raise ValueError(f"text is {list(text.shape)}; the table of positions is for {config.text_length} tokens")
        sides = (config.latent_height, config.latent_width)
        fits = (
            tuple(latents.shape[-2:]) == sides
            if config.one_size
            else all(side <= most for side, most in zip(latents.shape[-2:], sides, strict=True))
        )
        if not fits or (config.stored_positions and frames > config.latent_frames):
            rule = "" if config.one_size else "up to "
            raise ValueError(
                f"latents {list(latents.shape)} have no positions here: those are for {rule}"
                f"{config.latent_height} x {config.latent_width}, at most {config.latent_frames} frames"
            )


def _positions(config: CogVideoXConfig) -> BaseMixin:
    """Where a token lies: 1.0 carries its tables in the checkpoint, 1.5 does not."""
    if config.positions == "sincos":
        return FilmTableMixin(
            config.grid, config.hidden_size, config.text_length, config.patch_size, config.spatial_scale
        )
    if config.patch_frames > 1:
        return FilmRotaryMixin(config.patch_size, config.patch_frames)
    learned = (config.text_length, config.hidden_size) if config.learned_positions else None
    head_dim = config.hidden_size // config.num_attention_heads
    return StoredFilmRotaryMixin(config.grid, head_dim, config.patch_size, learned=learned)
