"""The base of diffusion transformers: SAT's transformer without words, with a vector for the time.

Legend: B batch, F frames of a film's latents, C channels, h and w of the latents, T text tokens, E width of the time's
vector.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mixins.base import ZooModel
from mixins.sat_compat import BaseTransformer
from sat_models.config import LatentTransformerConfig
from sat_models.models.common.activations import tanh_gelu


class DiffusionModel(ZooModel):
    """Latents with noise, a time and a text -> what the noise and the image are made of ("v").

    A subclass adds the mixins: what makes tokens of latents and text, where they lie, what a layer does, the head. It
    says in `embedding` what else the time's vector holds.

    Args:
        config: sizes.
        transformer: an existing one to share; made from `config` when None.
    """

    config_class: ClassVar[type[LatentTransformerConfig]] = LatentTransformerConfig
    layer_epsilon: ClassVar[float] = 1e-5
    """Of the layers' norms and the last one. The originals ask for 1e-6 there, which SAT's own value overrides."""
    affine_norms: ClassVar[bool] = False
    """Whether these norms have weights."""
    one_for_alike: ClassVar[bool] = False
    """Nothing tells the places of text tokens: alike ones stay so in every layer, and one may stand for all of them."""
    makes_films: ClassVar[bool] = False
    """Whether its latents have frames, too."""

    def __init__(
        self, config: LatentTransformerConfig, transformer: BaseTransformer | None = None, **kwargs: Any
    ) -> None:
        super().__init__(config, transformer=transformer or self._make_transformer(config, **kwargs))
        self.config = config
        self.time_embed = two_linears(config.hidden_size, config.time_embed_dim)

    @classmethod
    def _make_transformer(cls, config: LatentTransformerConfig, **kwargs: Any) -> BaseTransformer:
        transformer = BaseTransformer(
            num_layers=config.num_layers,
            vocab_size=1,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            max_sequence_length=1,
            inner_hidden_size=config.inner_hidden_size,
            layernorm_epsilon=cls.layer_epsilon,
            layernorm=functools.partial(nn.LayerNorm, elementwise_affine=cls.affine_norms),
            activation_func=tanh_gelu,
            **kwargs,
        )
        del transformer.word_embeddings, transformer.position_embeddings
        return transformer

    def forward(
        self, latents: Tensor, timestep: Tensor, text: Tensor, *, text_copies: int = 1, **conditions: Tensor | None
    ) -> Tensor:
        """Run the model.

        Args:
            latents: [B, C, h, w], multiples of `patch_size` high and wide; of films [B, F, C, h, w].
            timestep: [B], 0 (no noise) … 999.
            text: [B, T, …], what the text encoder gave; zeros for no text.
            text_copies: T is 1, and its token stands for so many alike ones (`one_for_alike`).
            conditions: those of `embedding`.

        Returns:
            v in the dtype of `latents` and, but for what a subclass puts beside them, in their shape.

        Raises:
            ValueError: latents or text of another shape.
        """
        self._check(latents, text)
        kind = self.time_embed[0].weight.dtype
        emb = self.embedding(latents, timestep, **conditions)
        ids = torch.zeros(len(latents), 1, dtype=torch.long, device=latents.device)  # SAT counts the batch by them
        given = {"latents": latents.to(kind), "text": text.to(kind), "emb": emb}
        if text_copies > 1:
            given["text_copies"] = text_copies
        return super().forward(input_ids=ids, position_ids=None, attention_mask=None, **given)[0].to(latents.dtype)

    def embedding(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """The time's vector [B, E]."""
        kind = self.time_embed[0].weight.dtype
        return self.time_embed(sinusoid(timestep, self.config.hidden_size).to(kind))

    def _check(self, latents: Tensor, text: Tensor) -> None:
        config = self.config
        if latents.dim() != 4 + self.makes_films or latents.shape[-3] != config.in_channels or text.dim() != 3:
            frames = "F, " if self.makes_films else ""
            raise ValueError(
                f"the model takes latents [B, {frames}{config.in_channels}, h, w] and text "
                f"[B, T, {config.text_hidden_size}], got {list(latents.shape)} and {list(text.shape)}"
            )
        if text.shape[-1] != config.text_hidden_size or len(text) != len(latents):
            wanted = [len(latents), "T", config.text_hidden_size]
            raise ValueError(f"text is {list(text.shape)}; these latents and this model take {wanted}")
        if any(size % config.patch_size for size in latents.shape[-2:]):
            raise ValueError(f"latents {list(latents.shape)} are not cut into patches of {config.patch_size}")


def two_linears(inputs: int, outputs: int) -> nn.Sequential:
    """Linear, SiLU, Linear, as the original names them: `0` and `2`."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.SiLU(), nn.Linear(outputs, outputs))


def sinusoid(values: Tensor, width: int) -> Tensor:
    """[...] -> [..., width] in fp32: cosines, then sines, of value * 10000^(-2i / width)."""
    half = width // 2
    powers = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float()[..., None] * torch.exp(-math.log(10000) * powers)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
