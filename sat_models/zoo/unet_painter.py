"""Painters with a UNet: one that draws, one that enlarges what is drawn ("relay"), and both as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sat_models.config.thin import UNetConfig
from sat_models.errors import ConfigError, InputError, refuse_unknown
from sat_models.processing.image import ImageSource, load_image
from sat_models.processing.image_codec import to_pixels
from sat_models.sampling.options import DrawingKeywords, DrawingOptions, check_prompts
from sat_models.sampling.samplers import Predict, Sample
from sat_models.sampling.sigmas import check_partial, euler, relay, sigma_steps
from sat_models.zoo.painter import Conditions, DrawingState, Painter, noise


class UNetPainter(Painter):
    """CogView3-Base or -Relay.

    Args:
        config: sizes; it says whether the model draws or enlarges.
        relay: of one that draws: another that enlarges what it drew, so that a draw is both.
        parts: see `Painter`.

    Raises:
        ConfigError: a `relay` that does not fit.
    """

    config: UNetConfig

    def __init__(self, config: UNetConfig, *, relay: UNetPainter | None = None, **parts: Any) -> None:
        super().__init__(config, **parts)
        self.relay = relay
        if relay is None:
            return
        if config.enlarges:
            raise ConfigError("relay is for a model that draws; this one enlarges images itself")
        for name in ("in_channels", "text_hidden_size", "text_length", "latent_scale", "pixels_per_latent"):
            mine, other = getattr(config, name), getattr(relay.config, name)
            if mine != other:
                raise ConfigError(f"relay has {name} = {other}, the model that draws has {mine}: they are no pair")

    def enlarge(
        self,
        prompt: str | Sequence[str],
        image: ImageSource | Sequence[ImageSource],
        **options: Unpack[DrawingKeywords],
    ) -> Image.Image | list[Image.Image]:
        """Twice as many pixels a side, with what the prompt says of them.

        Args:
            prompt: of each image.
            image: one for each prompt, all of one size.
            options: steps (of the whole schedule, of which the config's share is made), guidance, seed.

        Raises:
            InputError, ConfigError: as `draw`; and a model that does not enlarge.
        """
        for state in self.enlarge_steps(prompt, image, **options):
            last = state
        images = last.images()
        return images[0] if isinstance(prompt, str) else images

    def enlarge_steps(
        self,
        prompt: str | Sequence[str],
        image: ImageSource | Sequence[ImageSource],
        **options: Unpack[DrawingKeywords],
    ) -> Iterator[DrawingState]:
        """As `enlarge`, step by step: see `steps`. Bad arguments raise at the call."""
        return self._enlarged(*self._enlarging(prompt, image, options))

    def check_enlarging(
        self,
        prompt: str | Sequence[str],
        image: ImageSource | Sequence[ImageSource],
        **options: Unpack[DrawingKeywords],
    ) -> DrawingOptions:
        """What `enlarge` would do, nothing left open; raises as `enlarge` before any work."""
        return self._enlarging(prompt, image, options)[2]

    def _enlarging(
        self,
        prompt: str | Sequence[str],
        image: ImageSource | Sequence[ImageSource],
        options: DrawingKeywords,
    ) -> tuple[list[str], list[Image.Image], DrawingOptions]:
        if not self.config.enlarges:
            raise ConfigError(
                "this model draws; one that enlarges images is needed (cogview3-relay-3b, or partial_num_steps in "
                "its model_config.json)"
            )
        prompts = check_prompts(prompt)
        given = [load_image(one) for one in ([image] if isinstance(prompt, str) else image)]
        sizes = {one.size for one in given}
        if len(given) != len(prompts) or len(sizes) != 1:
            raise InputError(
                f"{len(prompts)} prompts and {len(given)} images of the sizes {sorted(sizes)} were given; an image of "
                "one size is wanted for each prompt"
            )
        size, asked = tuple(2 * side for side in sizes.pop()), options.get("size")
        if asked is not None and asked != size:
            raise InputError(f"the size is {asked!r:.40}; these images become {size[0]}x{size[1]}: leave it out")
        return prompts, given, super()._chosen({**options, "size": size}, self.enlarge)

    def _enlarged(
        self, prompts: Sequence[str], images: Sequence[Image.Image], chosen: DrawingOptions
    ) -> Iterator[DrawingState]:
        shape = self.config.latent_shape(*chosen.size)

        def made(text: Tensor, seeds: Sequence[int], chosen: DrawingOptions) -> Iterator[Sample]:
            start = torch.stack([noise(shape, seed) for seed in seeds])
            return self._relayed(start, self._doubled(images), text, chosen)

        yield from self._states(prompts, chosen, made)

    def _doubled(self, images: Sequence[Image.Image]) -> Tensor:
        """Latents of images with twice as many pixels a side. The original draws them from what the autoencoder gives,
        here they are its mean."""
        pixels = F.interpolate(to_pixels(images), scale_factor=2, mode="bilinear", align_corners=False)
        latents = self._codec.get().latents(pixels)
        self._codec.release()
        return latents

    def _made(self, text: Tensor, seeds: Sequence[int], chosen: DrawingOptions) -> Iterator[Sample]:
        if self.relay is None:
            yield from super()._made(text, seeds, chosen)
            return
        after = self.relay
        later = DrawingOptions.of(after.config, guidance=chosen.guidance, sized=False)
        every = chosen.steps + after.made_of(later.steps)
        for small in super()._made(text, seeds, replace(chosen, size=_halves(chosen.size))):
            yield replace(small, of=every)
        self._model.release()
        image = self._doubled(self._codec.get().decode(small.latents))
        before = small.latents[0].numel()
        start = torch.stack([noise(image.shape[1:], seed, before=before) for seed in seeds])
        try:
            for sample in after._relayed(start, image, text, later):
                yield replace(sample, index=chosen.steps + sample.index, of=every)
        finally:
            after._model.release()

    def _chosen(self, options: DrawingKeywords, asked: Callable[..., object]) -> DrawingOptions:
        if self.relay is None:
            if self.config.enlarges:
                raise ConfigError(
                    "this model enlarges images: give one (enlarge, --image), or name this model as relay of one that "
                    "draws (relay=, --relay)"
                )
            return super()._chosen(options, asked)
        size = DrawingOptions.of(self.relay.config, size=options.get("size")).size
        chosen = super()._chosen({**options, "size": _halves(size)}, asked)
        return replace(chosen, size=size)

    def made_of(self, steps: int) -> int:
        """How many of so many steps a model that enlarges makes."""
        return max(1, round(steps * self.config.partial_num_steps / self.config.steps))

    def denoise(
        self,
        start: Tensor,
        text: Tensor,
        *,
        image_latents: Tensor | None = None,
        partial_num_steps: int | None = None,
        **options: Any,
    ) -> Iterator[Tensor]:
        """See `Painter.denoise`; from an image's latents where they are given.

        Args:
            start: noise, [B, C, h, w].
            text: [B, T, E].
            image_latents: [B, C, h, w], of the image that is to be enlarged, with twice as many pixels a side.
            partial_num_steps: how many of the last steps are made from there; None: as usual for this model.
            options: of `Painter.denoise`.

        Raises:
            InputError, ConfigError: as there; and one of the two without the other.
        """
        if image_latents is None:
            if partial_num_steps is not None:
                raise InputError("partial_num_steps is for an image that is enlarged; give its image_latents, too")
            return super().denoise(start, text, **options)
        if image_latents.shape[1:] != start.shape[1:]:
            raise InputError(
                f"image_latents are {list(image_latents.shape)}, the noise is {list(start.shape)}: of one size"
            )
        names = ("original_size", "crop", "target_size")
        conditions = {name: options.pop(name, None) for name in names}
        refuse_unknown(options.keys() - {"steps", "guidance", "sampler"}, self.denoise, [*names, "steps", "guidance"])
        chosen = DrawingOptions.of(self.config, **options, sized=False)
        partial = self._partial(chosen, partial_num_steps)
        check_partial(partial, chosen.steps)
        samples = self._relayed(start, image_latents, text, chosen, conditions, partial)
        return (sample.latents for sample in samples)

    def _partial(self, chosen: DrawingOptions, asked: int | None) -> int:
        if asked is not None:
            return asked
        if not self.config.enlarges:
            raise ConfigError("this model draws: say partial_num_steps, or load weights that enlarge")
        return self.made_of(chosen.steps)

    @torch.no_grad()
    def _relayed(
        self,
        start: Tensor,
        image: Tensor,
        text: Tensor,
        chosen: DrawingOptions,
        conditions: Conditions | None = None,
        partial: int | None = None,
    ) -> Iterator[Sample]:
        predict = self._predict(text, chosen, conditions or {}, len(start))
        many = self.made_of(chosen.steps) if partial is None else partial
        yield from relay(predict, start.to(self.device), image.to(self.device), sigma_steps(chosen.steps), many)

    def _predict(self, text: Tensor, chosen: DrawingOptions, conditions: Conditions, rows: int) -> Predict:
        """A distilled model is told the guidance, and makes no second forward."""
        if self.config.cfg_cond_embed_dim is None:
            return super()._predict(text, chosen, conditions, rows)
        told = {**conditions, "guidance": torch.full((1, 1), float(chosen.guidance))}
        return super()._predict(text, replace(chosen, guidance=1), told, rows)

    def _sampled(self, predict: Predict, start: Tensor, chosen: DrawingOptions) -> Iterator[Sample]:
        return euler(predict, start, sigma_steps(chosen.steps))


def _halves(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // 2, size[1] // 2
