"""The images of a call: which there are, what becomes of each, and their pixels."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from PIL import Image
from torch import Tensor

from sat_models.config import ImageForm, ImagePlan
from sat_models.errors import InputError
from sat_models.processing.image import ImageSource, load_image
from sat_models.processing.pixels import image_to_tensor, planned_pixels

Images = ImageSource | Sequence[ImageSource] | None
"""The values that callers may pass as `image`: one, several, or none (text only)."""
MaxTiles = int | Sequence[int] | None
"""Most tiles of one image, an overview not counted: a number, one for each image, or the model's own choice."""


def as_list(image: Images) -> list[ImageSource]:
    """The images of an `image` argument: None is none of them, a list or tuple is itself."""
    if image is None:
        return []
    return list(image) if isinstance(image, (list, tuple)) else [image]


def sources_of(image: Images, form: ImageForm) -> list[ImageSource]:
    """The images of a call, opened where their plans depend on them."""
    sources = as_list(image)
    return sources if form.constant else list(map(load_image, sources))


def plans_of(sources: Sequence[ImageSource], form: ImageForm, max_tiles: MaxTiles = None) -> list[ImagePlan]:
    """The plan of each image.

    Raises:
        InputError: `max_tiles` is no such thing, or above 1 for a model that does not cut; an image that has to be
            opened for its plan and cannot be.
    """
    tiles = _tiles(max_tiles, len(sources), form)
    sizes = [None if form.constant else _opened(source).size for source in sources]
    return [form.plan(size, max_tiles=most) for size, most in zip(sizes, tiles, strict=True)]


def pixels_of(
    sources: Sequence[ImageSource], plans: Sequence[ImagePlan], form: ImageForm, cross_size: int | None
) -> tuple[Tensor | list[Tensor] | None, Tensor | None]:
    """Pixels for the vision tower (`VLMInputs.vision_image`) and the high-resolution branch, None where absent."""
    images = list(map(load_image, sources))
    if not images:
        return None, None
    parts = [planned_pixels(image, plan, form.processing) for image, plan in zip(images, plans, strict=True)]
    vision = torch.cat(parts) if len({part.shape[1:] for part in parts}) == 1 else parts
    if cross_size is None:
        return vision, None
    return vision, torch.stack([image_to_tensor(image, cross_size) for image in images])


def _tiles(max_tiles: MaxTiles, num_images: int, form: ImageForm) -> list[int | None]:
    """`max_tiles` for each image."""
    several = isinstance(max_tiles, (list, tuple))
    given = list(max_tiles) if several else [max_tiles] * num_images
    for most in given if several else [max_tiles]:
        if most is not None and (not isinstance(most, Integral) or isinstance(most, bool) or most < 1):
            raise InputError(f"max_tiles is {max_tiles!r:.80}; it must be a number from 1, or one for each image.")
        if most is not None and most > 1 and form.most_tiles == 1:
            raise InputError(
                f"max_tiles is {max_tiles}, but this model does not cut images into tiles. Leave it out or give 1."
            )
    if len(given) != num_images:
        raise InputError(f"max_tiles has {len(given)} numbers for {num_images} image(s). Give one for each.")
    usual = getattr(form, "most_tiles_of_several", None) if num_images > 1 else None
    return [usual if most is None else int(most) for most in given]


def _opened(source: ImageSource) -> Image.Image:
    return source if isinstance(source, Image.Image) else load_image(source)
