"""The bundled painter: a model that plans an image and writes its codes. It needs no extra package."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from PIL import Image
from torch import Tensor

from sat_models import runtime
from sat_models.checkpoint.layout import SATCheckpoint
from sat_models.config.planned import PlannedConfig
from sat_models.errors import InputError, refuse_unknown
from sat_models.models.common.image_tokens import ImageTokenModel
from sat_models.processing.image_codec import to_images
from sat_models.processing.plans import PlannedObject, Reading, read_plan, read_prompt
from sat_models.sampling.options import check_prompts
from sat_models.sampling.planned import write_planned
from sat_models.sampling.planned_options import PlannedKeywords, PlannedOptions
from sat_models.zoo.part import Part

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedState:
    """Images that are being written; a step is a token of each.

    Attributes:
        index: of the step, from 1.
        tokens: [B, index], those that are there.
        seeds: of each image.
        cut: what of each prompt the model does not read; mostly empty.
        model: decodes them.
    """

    index: int
    tokens: Tensor
    seeds: tuple[int, ...]
    cut: tuple[str, ...]
    model: ImageTokenModel

    @property
    def of(self) -> int:
        """Number of steps."""
        return self.model.config.steps

    def plans(self) -> list[tuple[str, list[PlannedObject]]]:
        """Background and objects of each image, in pixels; nothing while the plan is not whole."""
        length = self.model.config.plan_length
        if self.index < length:
            return []
        return [read_plan(self.model.config, row) for row in self.tokens[:, :length].tolist()]

    @torch.inference_mode()
    def images(self) -> list[Image.Image]:
        """The images; after the last step they are done, before, what is not there yet is as most of the rest."""
        config = self.model.config
        codes = self.tokens[:, config.plan_length :]
        if not codes.shape[1]:
            return [Image.new("RGB", config.usual_size, (127, 127, 127)) for _ in self.seeds]
        rest = codes.mode(dim=1, keepdim=True).values.expand(-1, config.cells - codes.shape[1])
        whole = torch.cat((codes, rest), dim=1).view(-1, config.grid, config.grid)
        return to_images(self.model.get_mixin("codec").decode(whole).float())

    preview = images


class PlannedPainter:
    """A model with the words and the codec that it carries.

    Args:
        config: sizes and words.
        model: opens the model, this process's part of it.
        device, dtype: of it.
        checkpoint: where its weights lie.
        keep: "all" or "model": it stays in memory between calls; "none".
    """

    def __init__(
        self,
        config: PlannedConfig,
        *,
        model: Callable[[], ImageTokenModel],
        device: torch.device,
        dtype: torch.dtype,
        checkpoint: SATCheckpoint,
        keep: str = "model",
    ) -> None:
        self.config, self.device, self.dtype, self.checkpoint = config, device, dtype, checkpoint
        self._model = Part(model, keep=keep != "none")

    @property
    def model(self) -> ImageTokenModel:
        """Read from its files when it is first asked for."""
        return self._model.get()

    def draw(
        self, prompt: str | Sequence[str], *, max_rows: int = 16, **options: Unpack[PlannedKeywords]
    ) -> Image.Image | list[Image.Image]:
        """Draw an image, or one for each prompt of a list; in a run of several processes, call it on each.

        Args:
            prompt: what is to be seen.
            max_rows: images that are made at a time.
            options: see `PlannedKeywords`.

        Raises:
            InputError: an empty prompt, one of which no word is known, or an option that cannot be.
            ConfigError: another number of steps.
        """
        prompts = check_prompts(prompt)
        if not isinstance(max_rows, int) or max_rows < 1:
            raise InputError(f"max_rows is {max_rows!r}; it must be a whole number of at least 1")
        chosen, read, images = self._chosen(options, self.draw), self._read(prompts), []
        for first in range(0, len(read), max_rows):
            for state in self._written(read[first : first + max_rows], chosen, first):
                last = state
            images += last.images()
        return images[0] if isinstance(prompt, str) else images

    def steps(self, prompt: str | Sequence[str], **options: Unpack[PlannedKeywords]) -> Iterator[PlannedState]:
        """As `draw`, step by step: for progress, previews, and to stop (who stops listening does).

        Bad arguments raise at the call. The last state's `images` are the result.
        """
        return self._written(self._read(check_prompts(prompt)), self._chosen(options, self.steps))

    def check(self, prompt: str | Sequence[str], **options: Unpack[PlannedKeywords]) -> PlannedOptions:
        """What `draw` would do, nothing left open; raises as `draw` before any work."""
        for one in check_prompts(prompt):
            read_prompt(self.config, one)
        return self._chosen(options, self.check)

    def _read(self, prompts: Sequence[str]) -> list[Reading]:
        """What the model reads of prompts; what it does not is warned of."""
        read = [read_prompt(self.config, prompt) for prompt in prompts]
        for prompt, reading in zip(prompts, read, strict=True):
            if reading.unknown:
                words = ", ".join(dict.fromkeys(reading.unknown))
                logger.warning("'%.60s': the model does not know %s, and reads the rest", prompt, words)
            if reading.cut:
                most = self.config.image_start
                logger.warning(
                    "the prompt has more than the %d words that are read: '%s' is left out", most, reading.cut
                )
        return read

    def _written(self, read: Sequence[Reading], chosen: PlannedOptions, first: int = 0) -> Iterator[PlannedState]:
        """The prompts from number `first` on of a call."""
        seeds = tuple(chosen.seed + first + number for number in range(len(read)))
        text = torch.tensor([reading.ids for reading in read], device=self.device)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        cut, tokens = tuple(reading.cut for reading in read), []
        try:
            for written in write_planned(self.model, text, generators=generators, temperature=chosen.temperature):
                tokens.append(written)
                yield PlannedState(len(tokens), torch.stack(tokens, dim=1), seeds, cut, self.model)
        finally:
            self._model.release()

    def _chosen(self, options: PlannedKeywords, asked: Callable[..., object]) -> PlannedOptions:
        """Checked, with a seed that all processes share."""
        known = PlannedKeywords.__annotations__
        refuse_unknown(options.keys() - known.keys(), asked, known)
        if options.get("seed") is None:
            options = {**options, "seed": runtime.broadcast_object(secrets.randbelow(2**31))}
        return PlannedOptions.of(self.config, **options)
