"""A made-up input for any config: for the proof of a conversion, the memory estimate, the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sat_models.config import FilmConfig, ImagePlan, LanguageConfig, LatentModelConfig, VisionLanguageConfig
from sat_models.processing.inputs import VLMInputs
from sat_models.processing.layout import Piece, layout_prompt

Images = int | Sequence[ImagePlan]
"""So many images, each the least that the model takes; or what becomes of each."""


def example_inputs(
    config: LanguageConfig, text: int, *, images: Images = 1, seed: int = 0, device: str = "cpu"
) -> VLMInputs:
    """A prompt of random text behind images of noise, if the model takes any.

    Args:
        config: of the model.
        text: tokens of text.
        images: see `Images`.
        seed: the same seed gives the same input.
        device: of the pixels; on "meta" they have no memory. Ids and masks are on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, config.vocab_size, (text,), generator=generator).tolist()
    plans = _plans(config, images)
    pieces: list[Piece] = [*plans, ids]
    layout = layout_prompt(pieces, bos_id=config.bos_token_id, form=config.sequence_form)

    def noise(count: int, width: int, height: int) -> Tensor:
        if device == "meta":
            return torch.empty(count, 3, height, width, device=device)
        return torch.randn(count, 3, height, width, generator=generator)

    parts = [noise(plan.num_tiles, *plan.tile) for plan in plans]
    vision = torch.cat(parts) if len({part.shape[1:] for part in parts}) == 1 else parts or None
    side = getattr(config, "cross_image_pix", None)
    return VLMInputs.from_layout(
        layout, vision_image=vision, cross_image=noise(len(plans), side, side) if side and plans else None
    )


def example_latents(config: LatentModelConfig, *, seed: int = 0) -> dict[str, Tensor]:
    """Noise in the place of latents and of a text, for the smallest result of a model."""
    generator = torch.Generator().manual_seed(seed)
    image = isinstance(config, FilmConfig) and config.takes_image
    return {
        "latents": torch.randn(1, *config.least_latents, generator=generator),
        "timestep": torch.full((1,), 500.0),
        "text": torch.randn(1, config.text_length, config.text_hidden_size, generator=generator),
        **({"image_latents": torch.randn(1, *config.least_latents, generator=generator)} if image else {}),
    }


def room_for_text(config: LanguageConfig, length: int, *, images: Images = 1) -> int:
    """Tokens of text in a prompt of `length` tokens in all; at least one."""
    return max(1, length - config.sequence_form.fixed_tokens(_plans(config, images)))


def image_that_fits(config: VisionLanguageConfig, length: int) -> ImagePlan:
    """A wide image of as many tiles as a prompt of `length` tokens has room for; of the least where none fits."""
    form = config.images
    for tiles in range(form.most_tiles, 1, -1):
        plan = form.plan((1000 * tiles, 1000), max_tiles=tiles)
        if config.sequence_form.fixed_tokens([plan]) < length:
            return plan
    return form.plan()


def _plans(config: LanguageConfig, images: Images) -> list[ImagePlan]:
    if not isinstance(config, VisionLanguageConfig):
        return []
    return [config.images.plan()] * images if isinstance(images, int) else list(images)
