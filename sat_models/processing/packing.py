"""Several training samples about the same images -> one row that holds the images once.

A row is what all samples have in common up to the end of the last image, and then the rest of each. Every rest sees the
common part and itself, and its positions go on from there, so it is exactly what the sample alone is. Attention must
look back only: where the image's tokens see the question (GLM), nothing is common.

Legend: P tokens in common, T tokens behind them, S = P + T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from sat_models.processing.inputs import TokenLayout
from sat_models.processing.layout import IGNORE


def common_length(layout: TokenLayout) -> int:
    """P of a sample: its tokens up to the last one of an image. 0 where it has no such part: without an image, or with
    a target that this part predicts."""
    slots = layout.image_embed_mask.nonzero()
    length = int(slots[-1]) + 1 if len(slots) else 0
    return 0 if bool((layout.labels[: length + 1] != IGNORE).any()) else length


def common_part(layout: TokenLayout) -> tuple[int, bytes]:
    """What must be equal in samples of the same images that share a row: how many images, and the tokens up to P."""
    return layout.num_images, layout.input_ids[: common_length(layout)].numpy().tobytes()


def pack(layouts: Sequence[TokenLayout]) -> TokenLayout:
    """One row of several samples.

    Args:
        layouts: with labels and a common part, the same in all.

    Raises:
        ValueError: attention that looks ahead, or samples without a common part.
    """
    first = layouts[0]
    common = common_length(first)
    if not common or any(common_part(layout) != common_part(first) for layout in layouts):
        raise ValueError("samples that share a row have the same tokens up to the end of their last image")
    if any(layout.attention_mask is not None for layout in layouts):
        raise ValueError("samples share a row where attention looks back alone; these have a mask of their own")
    names = ("input_ids", "position_ids", "image_embed_mask", "image_rope_mask", "labels", "vision_expert_mask")
    joined = {
        name: torch.cat([getattr(first, name)[:common], *(getattr(layout, name)[common:] for layout in layouts)])
        for name in names
        if getattr(first, name) is not None
    }
    own = torch.block_diag(*(torch.ones(len(each) - common, len(each) - common).tril() for each in layouts)).bool()
    return replace(first, **joined, lane_mask=torch.cat((own.new_ones(len(own), common), own), dim=1))
