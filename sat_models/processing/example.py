"""A made-up input for any config: for the proof of a conversion, the memory estimate, the benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor

from sat_models.config import LanguageConfig, VisionLanguageConfig
from sat_models.processing.inputs import VLMInputs
from sat_models.processing.layout import Piece, layout_prompt


def example_inputs(
    config: LanguageConfig, text: int, *, images: int = 1, seed: int = 0, device: str = "cpu"
) -> VLMInputs:
    """A prompt of random text behind images of noise, if the model takes any.

    Args:
        config: of the model; each image is the least that it takes.
        text: tokens of text.
        images: how many.
        seed: the same seed gives the same input.
        device: of the pixels; on "meta" they have no memory. Ids and masks are on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, config.vocab_size, (text,), generator=generator).tolist()
    plans = [config.images.plan()] * images if isinstance(config, VisionLanguageConfig) else []
    pieces: list[Piece] = [*plans, ids]
    layout = layout_prompt(pieces, bos_id=config.bos_token_id, form=config.sequence_form)

    def noise(count: int, width: int, height: int) -> Tensor:
        if device == "meta":
            return torch.empty(count, 3, height, width, device=device)
        return torch.randn(count, 3, height, width, generator=generator)

    vision = noise(sum(plan.num_tiles for plan in plans), *plans[0].tile) if plans else None
    side = getattr(config, "cross_image_pix", None)
    return VLMInputs.from_layout(
        layout, vision_image=vision, cross_image=noise(len(plans), side, side) if side and plans else None
    )


def room_for_text(config: LanguageConfig, length: int, *, images: int = 1) -> int:
    """Tokens of text in a prompt of `length` tokens in all; at least one."""
    plans = [config.images.plan()] * images if isinstance(config, VisionLanguageConfig) else []
    return max(1, length - config.sequence_form.fixed_tokens(plans))
