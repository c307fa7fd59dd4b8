"""CogView2 from a prompt to an image: CogLM writes a small one, one model enlarges it, one goes over it again."""

from __future__ import annotations

import functools
import math
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from PIL import Image
from torch import Tensor

from sat_models import runtime
from sat_models.checkpoint.ice_files import read_clusters
from sat_models.config.image_tokens import CODE_SIDE
from sat_models.errors import InputError, refuse_unknown
from sat_models.processing.image_codec import to_images
from sat_models.processing.prompt_language import warn_of_language
from sat_models.sampling.codes import PASSES, CodeChoice, enlarge, refine, write_codes
from sat_models.sampling.options import check_prompts
from sat_models.sampling.writing_options import (
    DEFAULT_STYLE,
    MOST_TOKENS,
    STYLES,
    WritingKeywords,
    WritingOptions,
    check_code_size,
)
from sat_models.zoo.token_painter import TokenPainter, generator_of, whole_rows

CLUSTERS = "cluster_label.npy"
ENLARGE, REFINE = "cogview2-dsr", "cogview2-itersr"
_MOST_LARGE = 96
"""Tokens of text that the enlarging model reads."""


@dataclass(frozen=True)
class WritingState:
    """Images that are being written.

    Attributes:
        index, of: a step is a code of a small image, or a forward over a large one.
        seeds: of each image.
        cut: the end of each prompt that is not read; such prompts are refused, so that all are empty.
        made: makes images of the codes that are there, whole rows of them.
    """

    index: int
    of: int
    seeds: tuple[int, ...]
    cut: tuple[str, ...]
    made: Callable[[], list[Image.Image]]

    def images(self) -> list[Image.Image]:
        """The images; after the last step they are done, before some may be missing, small or short."""
        return self.made()

    preview = images


class CodePainter(TokenPainter):
    """A CogLM with its two companions. See `TokenPainter` for the arguments."""

    def draw(self, prompt: str | Sequence[str], **options: Unpack[WritingKeywords]) -> Image.Image | list[Image.Image]:
        """Draw an image, or one for each prompt of a list; in a run of several processes, call it on each.

        Args:
            prompt: what is to be seen, in Chinese.
            options: size, style, seed: see `WritingKeywords`.

        Raises:
            InputError: an empty or too long prompt, a size that the models do not make.
            UnknownNameError: no such style.
            CheckpointError: a companion or a file of icetk is missing, with what to fetch.
        """
        for state in self.steps(prompt, **options):
            last = state
        images = last.images()
        return images[0] if isinstance(prompt, str) else images

    def steps(self, prompt: str | Sequence[str], **options: Unpack[WritingKeywords]) -> Iterator[WritingState]:
        """As `draw`, step by step: for progress, previews, and to stop (who stops listening does).

        Bad arguments raise at the call. The last state's `images` are the result.
        """
        chosen, texts = self._chosen(prompt, options, self.steps)
        for one in check_prompts(prompt):
            warn_of_language(one, self.config.PROMPT_LANGUAGES)
        return self._written(chosen, texts)

    def check(self, prompt: str | Sequence[str], **options: Unpack[WritingKeywords]) -> WritingOptions:
        """What `draw` would do, nothing left open; raises as `draw` before any work."""
        return self._chosen(prompt, options, self.check)[0]

    def _chosen(
        self, prompt: str | Sequence[str], options: WritingKeywords, asked: Callable[..., object]
    ) -> tuple[WritingOptions, list[Tensor]]:
        """Checked, with a seed that all processes share; and the ids of each text."""
        refuse_unknown(options.keys() - WritingKeywords.__annotations__.keys(), asked, WritingKeywords.__annotations__)
        prompts = check_prompts(prompt)
        sides = self.config.sides(self.config.image_cells)
        seed = options.get("seed")
        chosen = WritingOptions(
            size=check_code_size(options.get("size"), sides),
            style=options.get("style") or DEFAULT_STYLE,
            seed=runtime.broadcast_object(secrets.randbelow(2**31)) if seed is None else seed,
        )
        large = chosen.size == self.config.usual_size
        runtime.in_step(lambda: self._others.check(*((ENLARGE, REFINE) if large else ()), clusters=CLUSTERS))
        return chosen, [self._text(one, chosen, _MOST_LARGE if large else MOST_TOKENS - 1) for one in prompts]

    def _text(self, prompt: str, chosen: WritingOptions, most: int) -> Tensor:
        """[1, T] without `<start_of_image>`."""
        ids = self._ids(prompt + STYLES[chosen.style].words)
        if len(ids) > most:
            raise InputError(
                f"the prompt '{prompt:.30}…' with the words of its style has {len(ids)} tokens; {most} at most"
            )
        return torch.tensor([ids], device=self.device)

    def _written(self, chosen: WritingOptions, texts: Sequence[Tensor]) -> Iterator[WritingState]:
        seeds = tuple(chosen.seed + number for number in range(len(texts)))
        large = chosen.size == self.config.usual_size
        of = len(texts) * (self.config.image_cells + (1 + PASSES if large else 0))
        codes: list[Tensor | list[Tensor]] = [[] for _ in texts]
        stages = self._stages(chosen, texts, seeds, codes, large=large)
        for index, (number, there) in enumerate(stages, start=1):
            codes[number] = there
            yield WritingState(index, of, seeds, ("",) * len(texts), functools.partial(self._images, [*codes]))

    def _stages(
        self, chosen: WritingOptions, texts: Sequence[Tensor], seeds: Sequence[int],
        codes: Sequence[Tensor | list[Tensor]], *, large: bool,
    ) -> Iterator[tuple[int, Tensor | list[Tensor]]]:  # fmt: skip
        """Each image's number and its codes, after each step; one model after the other is in memory."""
        style, start = STYLES[chosen.style], self._special("start_of_image")
        clusters = read_clusters(self.checkpoint.step_folder, CLUSTERS, self.config.image_codes)
        generators = [generator_of(seed) for seed in seeds]
        try:
            choice = CodeChoice(temperature=style.temperature, clusters=clusters)
            for number, text in enumerate(texts):
                begun = torch.cat((text, text.new_full((1, 1), start)), dim=1)
                how = {"count": self.config.image_cells, "choice": choice, "generator": generators[number]}
                written: list[Tensor] = []
                for code in write_codes(self.model, begun, **how):
                    written.append(code)
                    yield number, [*written]
            self._model.release()
            if not large:
                return
            direct, again = self._others.model(ENLARGE), self._others.model(REFINE)
            choice = CodeChoice(
                temperature=1.0, best=style.best, clusters=clusters, cluster_temperature=style.cluster_temperature
            )
            for number, text in enumerate(texts):
                small, how = torch.cat(codes[number])[None], {"start": start, "generator": generators[number]}
                yield number, enlarge(direct.get(), text, small, choice=choice, **how)
            direct.release()
            for number, text in enumerate(texts):
                for passed in refine(again.get(), text, codes[number], start=start, generator=generators[number]):
                    yield number, passed
        finally:
            for part in (self._model, *self._others.models.values()):
                part.release()

    def _images(self, codes: Sequence[Tensor | list[Tensor]]) -> list[Image.Image]:
        pixels, images = self._others.pixels.get(), []
        for one in codes:
            count = one.numel() if isinstance(one, Tensor) else self.config.image_cells
            if (rows := whole_rows(one, math.isqrt(count))) is not None:
                images += to_images(pixels.decode(rows, CODE_SIDE) * 2 - 1)
        self._others.pixels.release()
        return images
