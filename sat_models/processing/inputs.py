"""One sample as ids, positions and masks, and the object that models of the zoo read. `layout` makes them.

Legend: B batch, S tokens, N pictures in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class TokenLayout:
    """One sample, every field a long tensor [S] but for a GLM's `position_ids` [2, S] and the masks.

    `vision_expert_mask` is None for models without experts, `attention_mask` [S, S] for causal ones, `labels`
    (unshifted, -100 = not trained) except in training, and `lane_mask` (see `VLMInputs`; here bool [T, S]) except where
    several samples share an image. `num_images` says how many images stand in it.
    """

    input_ids: Tensor
    position_ids: Tensor
    image_embed_mask: Tensor
    vision_expert_mask: Tensor | None
    image_rope_mask: Tensor
    attention_mask: Tensor | None = None
    labels: Tensor | None = None
    num_images: int = 0
    lane_mask: Tensor | None = None

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])


@dataclass
class VLMInputs:
    """The inputs of a model of the zoo, with their batch dimension.

    Attributes:
        input_ids: [B, S] long.
        position_ids: [B, S] long; [B, 2, S] for a GLM.
        image_embed_mask: [B, S] long, 1 where an embedding comes from an image (see the table in `layout`): the answer
            to "which tokens are image?", whether or not a model has experts.
        vision_expert_mask: [B, S] long, 1 where a token goes to the visual expert; None for models without experts.
        vision_image: [N, 3, H, W] normalised pixels in the order of their spans, an image's tiles counting one by one;
            a list of such where images have sizes of their own; None without images.
        cross_image: [N, 3, H2, W2] for the high-resolution branch of CogAgent, else None.
        attention_mask: [B or 1, 1, S, S] with 1 = may look; None is causal.
        labels: [B, S] long for training, unshifted, -100 where not trained; not part of `model_kwargs`.
        lane_mask: bool [B, 1, T, S] for training with the mixin "packed": what the last T tokens may look at, where
            several samples share the image before them (`packing.pack`); None elsewhere.
    """

    input_ids: Tensor
    position_ids: Tensor
    image_embed_mask: Tensor
    vision_expert_mask: Tensor | None = None
    vision_image: Tensor | list[Tensor] | None = None
    cross_image: Tensor | None = None
    attention_mask: Tensor | None = None
    labels: Tensor | None = None
    lane_mask: Tensor | None = None

    @classmethod
    def from_layout(
        cls,
        layout: TokenLayout,
        *,
        vision_image: Tensor | list[Tensor] | None = None,
        cross_image: Tensor | None = None,
    ) -> VLMInputs:
        """A batch of one."""
        return cls(
            input_ids=layout.input_ids[None],
            position_ids=layout.position_ids[None],
            image_embed_mask=layout.image_embed_mask[None],
            vision_expert_mask=_row(layout.vision_expert_mask),
            vision_image=vision_image,
            cross_image=cross_image,
            attention_mask=None if layout.attention_mask is None else layout.attention_mask[None, None],
            labels=_row(layout.labels),
            lane_mask=None if layout.lane_mask is None else layout.lane_mask[None, None],
        )

    @property
    def length(self) -> int:
        """S, padding included."""
        return int(self.input_ids.shape[1])

    @property
    def batch_size(self) -> int:
        """B."""
        return int(self.input_ids.shape[0])

    @property
    def tokens(self) -> int:
        """B * S, padding included."""
        return self.input_ids.numel()

    @property
    def has_images(self) -> bool:
        """True if the batch has an image."""
        return self.vision_image is not None

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> VLMInputs:
        """A copy on `device`; `dtype` is for the pixels alone."""

        def moved(given: Tensor | list[Tensor] | None, to: torch.dtype | None) -> Tensor | list[Tensor] | None:
            if isinstance(given, list):
                return [tensor.to(device=device, dtype=to) for tensor in given]
            return None if given is None else given.to(device=device, dtype=to)

        pixels = ("vision_image", "cross_image")
        return replace(self, **{name: moved(t, dtype if name in pixels else None) for name, t in vars(self).items()})

    def model_kwargs(self) -> dict[str, Any]:
        """Keyword arguments for `model(**kwargs)`; what the model or the prompt has not is left out, labels always."""
        kwargs: dict[str, Any] = {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
            "image_embed_mask": self.image_embed_mask,
        }
        for name in ("vision_expert_mask", "vision_image", "cross_image", "lane_mask"):
            if getattr(self, name) is not None:
                kwargs[name] = getattr(self, name)
        return kwargs


def _row(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor[None]
