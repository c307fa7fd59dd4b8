"""The mixin "eva": puts an image into the token sequence.

Legend: B batch, S tokens, N images, P image tokens, D language width.
"""

from __future__ import annotations

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

    def encode_images(self, vision_image: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] -> embeddings [N, P, D], in the order of the slots."""
        raise NotImplementedError

    def word_embedding_forward(
        self,
        input_ids: Tensor,
        *,
        vision_image: Tensor | None = None,
        image_embed_mask: Tensor | None = None,
        **kw: Any,
    ) -> Tensor:
        """input_ids [B, S] -> embeddings [B, S, D]. Without `vision_image` the tower is not run."""
        embeddings = embed(self.transformer.word_embeddings, input_ids)
        if vision_image is None:
            return embeddings
        if image_embed_mask is None:
            raise ValueError("vision_image was given without image_embed_mask, which says where it goes")
        image = self.encode_images(vision_image).to(embeddings.dtype)
        slots = image_embed_mask.bool()
        if image.shape[0] * image.shape[1] != int(slots.sum()):
            raise ValueError(
                f"image_embed_mask marks {int(slots.sum())} positions, but {image.shape[0]} image(s) of "
                f"{image.shape[1]} embeddings (begin and end included) were given"
            )
        return embeddings.masked_scatter(slots.unsqueeze(-1), image)

    @stands_for("word_embedding_forward")
    def text_token(self) -> nn.Module:
        """What looks words up: a token of text comes without an image."""
        return self.transformer.word_embeddings


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
        features = self.vit_model(vision_image)
        if self.pos_embed is not None:
            features = features + self.pos_embed
        features = self.linear_proj(features)
        count = features.shape[0]
        return torch.cat((self.boi.expand(count, -1, -1), features, self.eoi.expand(count, -1, -1)), dim=1)


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
