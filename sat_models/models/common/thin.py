"""The base of thin models: a network of diffusers' that is read, moved and written like any model here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sat_models.config.thin import ThinConfig


class ThinModel(nn.Module):
    """A network under the names of its releases.

    Its modules stand in this one's tree by those names, shared and not copied: a weight that is loaded or moved here is
    loaded and moved there.

    Args:
        config: sizes.
        network: of diffusers.
        names: of each of its modules with weights, in the release and in `network`.
    """

    config_class: ClassVar[type[ThinConfig]] = ThinConfig

    def __init__(self, config: ThinConfig, network: nn.Module, names: Iterable[tuple[str, str]]) -> None:
        super().__init__()
        self.config = config
        self.__dict__["network"] = network.eval()  # not a submodule: its weights would stand here twice
        there = dict(network.named_modules())
        for own, theirs in names:
            if theirs in there:
                self._share(own, there[theirs])

    def _share(self, name: str, module: nn.Module) -> None:
        place: nn.Module = self
        *path, last = name.split(".")
        for part in path:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place._modules[part]
        place.add_module(last, module)

    def check(self, latents: Tensor, text: Tensor) -> None:
        """Raise ValueError for latents or a text of another shape."""
        config = self.config
        if latents.dim() != 4 or latents.shape[1] != config.in_channels or text.dim() != 3:
            raise ValueError(
                f"the model takes latents [B, {config.in_channels}, h, w] and text [B, T, {config.text_hidden_size}], "
                f"got {list(latents.shape)} and {list(text.shape)}"
            )
        if text.shape[-1] != config.text_hidden_size or len(text) != len(latents):
            wanted = [len(latents), "T", config.text_hidden_size]
            raise ValueError(f"text is {list(text.shape)}; these latents and this model take {wanted}")
        multiple = config.latent_multiple
        if any(size % multiple for size in latents.shape[-2:]):
            raise ValueError(f"latents {list(latents.shape)} must be multiples of {multiple} high and wide")


def described(
    latents: Tensor,
    pixels_per_latent: int,
    original_size: Tensor | None,
    crop: Tensor | None,
    target_size: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What describes an image, [B, 2] each: its size as it was, what was cut off above and at the left, the result's.

    Args:
        latents: [B, C, h, w].
        target_size: None: that of `latents`.
        original_size: None: `target_size`.
        crop: None: nothing.
    """
    if target_size is None:
        pixels = [size * pixels_per_latent for size in latents.shape[-2:]]
        target_size = torch.tensor([pixels], device=latents.device).expand(len(latents), -1)
    original_size = target_size if original_size is None else original_size
    crop = torch.zeros_like(target_size) if crop is None else crop
    return tuple(value.to(latents.device).float() for value in (original_size, crop, target_size))


def diffusers_class(name: str) -> Any:
    """A class of diffusers by name. Raises MissingPackageError."""
    from sat_models.processing.image_codec import require_diffusers

    return getattr(require_diffusers(f"the network {name}"), name)
