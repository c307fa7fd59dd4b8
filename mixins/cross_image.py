"""The mixin "encoder": high-resolution features that the layers read by cross-attention.

Source: CogAgent, arXiv 2312.08914 §3.2.

Legend: B batch rows, N images, P patches per image, V width of the high-resolution tower.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mixins.sat_compat import BaseMixin


class CrossImageMixin(BaseMixin):
    """Makes the features, once per image; the layers' own `cross_attention` turns them into keys and values.

    The tower is passed in.

    Args:
        vit: pixels [N, 3, H, W] -> features [N, P, V].
        num_patches: P.
        width: V.
    """

    def __init__(self, vit: nn.Module, num_patches: int, width: int) -> None:
        super().__init__()
        self.vit = vit
        self.pos_embed = nn.Parameter(torch.zeros(num_patches, width))

    def encode_images(self, cross_image: Tensor) -> Tensor:
        """Pixels [N, 3, H, W] -> [N, P, V], with the learned vector of each place added."""
        return self.vit(cross_image) + self.pos_embed

    def memory(self, cross_image: Tensor, batch: int) -> Tensor:
        """The features that each row of the batch may read: [B, N / B * P, V].

        Args:
            cross_image: [N, 3, H, W], row by row; each row has the same number of pictures.
            batch: B.

        Raises:
            ValueError: N is no multiple of B.
        """
        count = cross_image.shape[0]
        if count == 0 or count % batch:
            raise ValueError(
                f"cross_image holds {count} picture(s) for a batch of {batch}: every row needs the same number of "
                "them, at least one. Run rows with and without pictures apart."
            )
        return self.encode_images(cross_image).reshape(batch, -1, self.pos_embed.shape[-1])
