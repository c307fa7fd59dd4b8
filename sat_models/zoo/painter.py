"""A model that draws: the object that `load_pretrained` gives for one. Its parts are in memory when they are needed.

Legend: B images, C channels, h and w of the latents, T text tokens, E text width.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sat_models import runtime
from sat_models.checkpoint.layout import SATCheckpoint
from sat_models.config import PainterConfig
from sat_models.errors import InputError, refuse_unknown
from sat_models.models.common.diffusion import DiffusionModel
from sat_models.models.common.thin import ThinModel
from sat_models.processing.image_codec import ImageCodec
from sat_models.processing.prompt_language import warn_of_language
from sat_models.processing.text_encoder import TextEncoder
from sat_models.sampling.guidance import guided
from sat_models.sampling.options import DrawingKeywords, DrawingOptions, check_prompts
from sat_models.sampling.samplers import Predict, Sample, ddim
from sat_models.sampling.schedule import steps_of
from sat_models.zoo.part import Part

logger = logging.getLogger(__name__)

KEEPS = ("all", "model", "none")
"""What stays in memory between calls."""
REMEMBERED = 32
"""Prompts whose text stays at hand, so that drawing them again, or several images of them, needs no text encoder."""
Conditions = Mapping[str, Tensor | None]
"""What else a model is told, by name, [B, …] or [1, …]."""
Made = Callable[[Tensor, Sequence[int], DrawingOptions], Iterator[Sample]]
"""From what was read of prompts, a seed for each, and options, to the latents after each step."""
_PREVIEW = 32
"""Latents on the longer side of a preview, at most."""


@dataclass(frozen=True)
class DrawingState:
    """Images that are being drawn.

    Attributes:
        sample: step, number of steps, latents.
        seeds: of each image.
        cut: the end of each prompt that the model does not read; mostly empty.
        codec: opens the codec.
    """

    sample: Sample
    seeds: tuple[int, ...]
    cut: tuple[str, ...]
    codec: Part[ImageCodec]

    @property
    def index(self) -> int:
        """Of the step, from 1."""
        return self.sample.index

    @property
    def of(self) -> int:
        """Number of steps."""
        return self.sample.of

    def preview(self) -> list[Image.Image]:
        """What the images may become, small and rough."""
        clean = self.sample.clean
        factor = -(-max(clean.shape[-2:]) // _PREVIEW)
        return self.codec.get().decode(F.avg_pool2d(clean, factor) if factor > 1 else clean)

    def images(self) -> list[Image.Image]:
        """The images; after the last step they are done."""
        images = self.codec.get().decode(self.sample.latents)
        self.codec.release()
        return images


class Painter:
    """A diffusion transformer with a text encoder before it and an image codec behind it.

    A draw encodes the text and drops the encoder, denoises, drops what `keep` does not name, and decodes.

    Args:
        config: sizes, usual numbers of steps and guidance.
        model: opens the transformer, this process's part of it.
        text_encoder, codec: open the other parts; what they raise says what is missing.
        check: raises, before any work, where one of them is missing.
        device, dtype: of the transformer.
        checkpoint: where its weights lie.
        keep: "all": every part stays in memory once it was needed; "model": the transformer does; "none".
    """

    def __init__(
        self,
        config: PainterConfig,
        *,
        model: Callable[[], DiffusionModel | ThinModel],
        text_encoder: Callable[[], TextEncoder],
        codec: Callable[[], ImageCodec],
        check: Callable[[], None],
        device: torch.device,
        dtype: torch.dtype,
        checkpoint: SATCheckpoint,
        keep: str = "model",
    ) -> None:
        self.config, self.device, self.dtype, self.checkpoint = config, device, dtype, checkpoint
        self._check_parts = check
        self._model = Part(model, keep=keep != "none")
        self._text_encoder = Part(text_encoder, keep=keep == "all")
        self._codec = Part(codec, keep=keep == "all")
        self._texts: dict[str, tuple[Tensor, str]] = {}

    @property
    def model(self) -> DiffusionModel | ThinModel:
        """The transformer; read from its files when it is first asked for."""
        return self._model.get()

    @property
    def text_encoder(self) -> Part[TextEncoder]:
        """What reads prompts; who asks for it releases it."""
        return self._text_encoder

    @property
    def codec(self) -> Part[ImageCodec]:
        """What makes images of latents, and the reverse; who asks for it releases it."""
        return self._codec

    def draw(
        self, prompt: str | Sequence[str], *, max_rows: int = 4, **options: Unpack[DrawingKeywords]
    ) -> Image.Image | list[Image.Image]:
        """Draw an image, or one for each prompt of a list; in a run of several processes, call it on each.

        Args:
            prompt: what is to be seen.
            max_rows: images that are made at a time; memory grows with it.
            options: size, steps, guidance, seed, sampler: see `DrawingKeywords`.

        Raises:
            InputError: an empty prompt, a size that the model was not made for, latents that are no numbers.
            ConfigError: no such sampler or number of steps.
            CheckpointError, MissingPackageError: no text encoder or codec, with what to fetch or to install.
        """
        prompts = check_prompts(prompt)
        if not isinstance(max_rows, int) or max_rows < 1:
            raise InputError(f"max_rows is {max_rows!r}; it must be a whole number of at least 1")
        chosen = self._chosen(options, self.draw)
        images: list[Image.Image] = []
        for first in range(0, len(prompts), max_rows):
            self.read_ahead(prompts, first)
            images += self._last(prompts[first : first + max_rows], chosen, first).images()
        return images[0] if isinstance(prompt, str) else images

    def steps(self, prompt: str | Sequence[str], **options: Unpack[DrawingKeywords]) -> Iterator[DrawingState]:
        """As `draw`, step by step: for progress, previews, and to stop (who stops listening does).

        Bad arguments raise at the call. The last state's `images` are the result.
        """
        return self._drawn(check_prompts(prompt), self._chosen(options, self.steps))

    def check(self, prompt: str | Sequence[str], **options: Unpack[DrawingKeywords]) -> DrawingOptions:
        """What `draw` would do, nothing left open; raises as `draw` before any work."""
        check_prompts(prompt)
        return self._chosen(options, self.check)

    def _last(self, prompts: Sequence[str], chosen: DrawingOptions, first: int) -> DrawingState:
        for state in self._drawn(prompts, chosen, first):
            last = state
        return last

    def _drawn(self, prompts: Sequence[str], chosen: DrawingOptions, first: int = 0) -> Iterator[DrawingState]:
        """The prompts from number `first` on of a call."""
        return self._states(prompts, chosen, self._made, first)

    def _states(
        self, prompts: Sequence[str], chosen: DrawingOptions, made: Made, first: int = 0
    ) -> Iterator[DrawingState]:
        """The prompts are read, then images are made of what was read and of a seed for each."""
        seeds = tuple(chosen.seed + first + number for number in range(len(prompts)))
        text, cut = self._read(prompts)
        try:
            with contextlib.closing(made(text, seeds, chosen)) as samples:
                for sample in samples:
                    yield DrawingState(sample, seeds, cut, self._codec)
        finally:
            self._model.release()
            self._codec.release()

    def _made(self, text: Tensor, seeds: Sequence[int], chosen: DrawingOptions) -> Iterator[Sample]:
        """From noise."""
        shape = self.config.latent_shape(*chosen.size)
        start = torch.stack([noise(shape, seed) for seed in seeds])
        return self._samples(start, text, chosen, {})

    def denoise(
        self,
        start: Tensor,
        text: Tensor,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        original_size: Tensor | None = None,
        crop: Tensor | None = None,
        target_size: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """From noise to latents; gives them after each step, [B, C, h, w] in fp32.

        Args:
            start: noise, [B, C, h, w].
            text: [B, T, E], as `encode` gives it.
            steps, guidance, sampler: as in `draw`.
            original_size, crop, target_size: see the model; [B, 2] or [1, 2] (height, width). None: those of an image
                as large as the latents, whole.

        Raises:
            InputError, ConfigError: as `draw`, at the call.
        """
        chosen = DrawingOptions.of(self.config, steps=steps, guidance=guidance, sampler=sampler, sized=False)
        conditions = {"original_size": original_size, "crop": crop, "target_size": target_size}
        return (sample.latents for sample in self._samples(start, text, chosen, conditions))

    @torch.no_grad()
    def _samples(self, start: Tensor, text: Tensor, chosen: DrawingOptions, conditions: Conditions) -> Iterator[Sample]:
        predict = self._predict(text, chosen, conditions, len(start))
        yield from self._sampled(predict, start.to(self.device), chosen)

    def _predict(self, text: Tensor, chosen: DrawingOptions, conditions: Conditions, rows: int) -> Predict:
        """The guided model."""
        told = self._told(conditions, rows)
        return guided(self.model, text.to(self.device, self.dtype), chosen.guidance, told, dtype=self.dtype)

    def _told(self, conditions: Conditions, rows: int) -> dict[str, Tensor]:
        """For so many images, on the model's device; without those that are None."""
        given = {name: torch.as_tensor(value) for name, value in conditions.items() if value is not None}
        return {name: value.to(self.device).expand(rows, -1) for name, value in given.items()}

    def _sampled(self, predict: Predict, start: Tensor, chosen: DrawingOptions) -> Iterator[Sample]:
        """The sampler of this kind of model."""
        return ddim(predict, start, steps_of(chosen.sampler, chosen.steps, self.config.snr_shift))

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """What the model reads of prompts, [B, T, E] on the CPU; what it cannot take of them is warned of.

        The work of the first process; the others get its result.
        """
        return self._read(prompts)[0]

    def read_ahead(self, prompts: Sequence[str], first: int) -> None:
        """Encode a run of the prompts of a call, so that the text encoder is not opened for each of them.

        Args:
            first: number of the one that is drawn next. Where it is remembered nothing is done.
        """
        if prompts[first] not in self._texts:
            self.encode(prompts[first : first + REMEMBERED])

    def _read(self, prompts: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
        """See `encode`; and what is left out of each prompt."""
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]:
            read = runtime.in_step(lambda: self._encoded(new) if runtime.rank() == 0 else None)
            self._texts |= runtime.broadcast_object(read)
        texts, cut = zip(*(self._texts[prompt] for prompt in prompts), strict=True)
        for old in list(self._texts)[:-REMEMBERED]:
            del self._texts[old]
        return self._joined(texts), cut

    def _encoded(self, prompts: Sequence[str]) -> dict[str, tuple[Tensor, str]]:
        try:
            return self._encoded_by(self._text_encoder.get(), prompts)
        finally:
            self._text_encoder.release()

    def _encoded_by(self, encoder: TextEncoder, prompts: Sequence[str]) -> dict[str, tuple[Tensor, str]]:
        for prompt in prompts:
            warn_of_language(prompt, self.config.PROMPT_LANGUAGES)
        cut = [_cut(encoder, prompt, self.config.text_length) for prompt in prompts]
        return dict(zip(prompts, zip(self._rows(encoder, prompts), cut, strict=True), strict=True))

    def _rows(self, encoder: TextEncoder, prompts: Sequence[str]) -> Sequence[Tensor]:
        return encoder.encode(prompts).split(1)

    def _joined(self, rows: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(rows))

    def _chosen(self, options: DrawingKeywords, asked: Callable[..., object]) -> DrawingOptions:
        """Checked, with a seed that all processes share."""
        known = DrawingKeywords.__annotations__
        refuse_unknown(options.keys() - known.keys(), asked, known)
        if options.get("seed") is None:
            options = {**options, "seed": runtime.broadcast_object(secrets.randbelow(2**31))}
        chosen = DrawingOptions.of(self.config, **options)
        runtime.in_step(self._check_parts)
        return chosen


def _cut(encoder: TextEncoder, prompt: str, length: int) -> str:
    """What is left out of a prompt, which is warned of."""
    if cut := encoder.cut(prompt):
        logger.warning(
            "the prompt has %d tokens and the model reads %d: '%s' is left out", encoder.length(prompt), length, cut
        )
    return cut


def noise(shape: Sequence[int], seed: int, *, before: int = 0) -> Tensor:
    """Normal noise of a shape in fp32, the same on every device; `before` numbers of the seed were drawn already."""
    generator = torch.Generator().manual_seed(seed)
    torch.randn(before, generator=generator)
    return torch.randn(*shape, generator=generator)
