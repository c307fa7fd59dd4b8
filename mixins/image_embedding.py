"""The mixin "eva": puts an image into the token sequence.

Legend: B batch, S tokens, N images, P image tokens, D language width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mixins.linear import embed
from mixins.sat_compat import BaseMixin
from mixins.text_token import stands_for


class ImageEmbedding(BaseMixin):
    """Overwrites the embeddings where `image_embed_mask` is 1 with what `encode_images` gives.

    A model's own "eva" is a subclass with its parts and this one method.
    """

    def encode_images(self, vision_image: Tensor) -> Tensor | Sequence[Tensor]:
        """Pixels [N, 3, H, W] -> embeddings [N, P, D], in the order of the slots.

        A family whose images take unequal numbers of tokens gives a list of [P, D]; one whose images have sizes of
        their own is given a list of [T, 3, H, W].
        """
        raise NotImplementedError

    def encoded(self, vision_image: Tensor | Sequence[Tensor]) -> Tensor:
        """The embeddings of all slots, one after the other, [slots, D]."""
        return _one_after_the_other(self.encode_images(vision_image))

    def word_embedding_forward(
        self,
        input_ids: Tensor,
        *,
        vision_image: Tensor | Sequence[Tensor] | None = None,
        image_embed_mask: Tensor | None = None,
        image_features: Tensor | None = None,
        **kw: Any,
    ) -> Tensor:
        """input_ids [B, S] -> embeddings [B, S, D].

        Args:
            vision_image: pixels. Without them the tower is not run.
            image_embed_mask: [B, S], 1 = a slot.
            image_features: what `encoded` gave for the slots, in place of pixels: a sequence that is computed in pieces
                has its images encoded once.

        Raises:
            ValueError: slots and images that do not fit each other.
        """
        embeddings = embed(self.transformer.word_embeddings, input_ids)
        if vision_image is None and image_features is None:
            if image_embed_mask is not None and image_embed_mask.any():
                raise ValueError(
                    f"image_embed_mask marks {int(image_embed_mask.bool().sum())} positions, but no vision_image was "
                    "given. Pass the pixels that belong there, or a mask of zeros."
                )
            return embeddings
        if image_embed_mask is None:
            raise ValueError("vision_image was given without image_embed_mask, which says where it goes")
        slots = image_embed_mask.bool()
        images = self.encode_images(vision_image) if image_features is None else [image_features]
        _check_slots(int(slots.sum()), [len(image) for image in images])
        return embeddings.masked_scatter(slots.unsqueeze(-1), _one_after_the_other(images).to(embeddings.dtype))

    @stands_for("word_embedding_forward")
    def text_token(self) -> nn.Module:
        """The table that looks words up: a token of text comes without an image."""
        return self.transformer.word_embeddings


def _one_after_the_other(images: Tensor | Sequence[Tensor]) -> Tensor:
    return images.flatten(0, 1) if isinstance(images, Tensor) else torch.cat(tuple(images))


def _check_slots(slots: int, lengths: Sequence[int]) -> None:
    if sum(lengths) != slots:
        each = f"{lengths[0]}" if len(set(lengths)) == 1 else f"{lengths}"
        raise ValueError(
            f"image_embed_mask marks {slots} positions, but {len(lengths)} image(s) of {each} embeddings "
            "(begin and end included) were given"
        )


class ImageMixin(ImageEmbedding):
    """Tower and projector, which are passed in, with begin and end vectors around each image's tokens.

    Args:
        vit_model: pixels [N, 3, H, W] -> features [N, P, V].
        linear_proj: [N, P, V] -> [N, P, D].
        hidden_size: D.
        positions: (P, V) of a learned vector added to each image token before the projector (CogAgent); None without.
    """

    def __init__(
        self,
        vit_model: nn.Module,
        linear_proj: nn.Module,
        hidden_size: int,
        *,
        positions: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.vit_model = vit_model
        self.linear_proj = linear_proj
        self.boi = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.eoi = nn.Parameter(torch.zeros(1, 1, hidden_size))
        self.pos_embed = None if positions is None else nn.Parameter(torch.zeros(positions))

    def encode_images(self, vision_image: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] -> [N, P + 2, D], with the begin and end vectors around the P image tokens."""
        features = self.linear_proj(self._features(vision_image))
        count = features.shape[0]
        return torch.cat((self.boi.expand(count, -1, -1), features, self.eoi.expand(count, -1, -1)), dim=1)

    def _features(self, vision_image: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] -> what the projector reads, [N, P, V]."""
        features = self.vit_model(vision_image)
        return features if self.pos_embed is None else features + self.pos_embed


class ConvolvedImageMixin(ImageMixin):
    """With a convolution over the grid of patches between tower and projector (CogVLM2, GLM-4V).

    Args:
        vit_model: pixels [N, 3, H, W] -> features [N, side * side, V].
        conv: [N, V, side, side] -> [N, U, a smaller grid].
        linear_proj: [N, P, U] -> [N, P, D].
        hidden_size: D.
        divisor: of all embeddings of an image, the begin and end vectors included.
    """

    def __init__(
        self, vit_model: nn.Module, conv: nn.Conv2d, linear_proj: nn.Module, hidden_size: int, *, divisor: float = 1.0
    ) -> None:
        super().__init__(vit_model, linear_proj, hidden_size)
        self.conv, self.divisor = conv, divisor

    def encode_images(self, vision_image: Tensor) -> Tensor:
        """As `ImageMixin.encode_images`, divided."""
        embeddings = super().encode_images(vision_image)
        return embeddings if self.divisor == 1 else embeddings / self.divisor

    def _features(self, vision_image: Tensor) -> Tensor:
        features = super()._features(vision_image).transpose(1, 2)
        side = math.isqrt(features.shape[-1])
        return self.conv(features.unflatten(-1, (side, side))).flatten(2).transpose(1, 2)


class ProjectedImageMixin(ImageEmbedding):
    """Tower and projector, which are passed in, and nothing around them (LLaVA, MiniGPT-4).

    Args:
        vit_model: pixels [N, 3, H, W] -> features [N, P, V].
        linear_proj: [N, P, V] -> [N, P, D].
    """

    def __init__(self, vit_model: nn.Module, linear_proj: nn.Module) -> None:
        super().__init__()
        self.vit_model = vit_model
        self.linear_proj = linear_proj

    def encode_images(self, vision_image: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] -> [N, P, D]."""
        return self.linear_proj(self.vit_model(vision_image))


class ShuffledImageMixin(ProjectedImageMixin):
    """With a square of neighbouring patches joined to one token between tower and projector (InternVL).

    Args:
        vit_model: pixels [N, 3, H, W] -> features [N, side * side, V].
        linear_proj: [N, P, joined * joined * V] -> [N, P, D], P = (side / joined) ** 2.
        joined: patches on either side of the square.
        by_columns: tokens stand column by column, not row by row (the first form, "v1", of its pixel shuffle).
    """

    def __init__(self, vit_model: nn.Module, linear_proj: nn.Module, joined: int, *, by_columns: bool) -> None:
        super().__init__(vit_model, linear_proj)
        self.joined, self.by_columns = joined, by_columns

    def encode_images(self, vision_image: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] -> [N, P, D]."""
        features = self.vit_model(vision_image)
        side = math.isqrt(features.shape[1]) // self.joined
        squares = features.unflatten(1, (side, self.joined, side, self.joined)).transpose(2, 3)
        if self.by_columns:
            squares = squares.transpose(1, 2)
        return self.linear_proj(squares.flatten(3).flatten(1, 2))


class WholeImageMixin(ImageEmbedding):
    """One module that does all of it, under the name `model` (VisualGLM).

    Args:
        model: pixels [N, 3, H, W] -> [N, P, D].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def encode_images(self, vision_image: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] -> [N, P, D]."""
        return self.model(vision_image)
