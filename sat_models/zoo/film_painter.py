"""A model that makes films out of noise: the object that `load_pretrained` gives for one.

Legend: B films, F frames of the latents, C channels, h and w of the latents, T text tokens, E text width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Unpack

import torch
from PIL import Image
from torch import Tensor

from sat_models import runtime
from sat_models.checkpoint.memory import free_bytes
from sat_models.config import FilmConfig
from sat_models.errors import InputError, refuse_unknown
from sat_models.processing.film import Film, check_fps
from sat_models.processing.image import load_image
from sat_models.sampling.film_memory import check_room
from sat_models.sampling.film_options import FilmKeywords, FilmOptions, drawn_seed, given_frames
from sat_models.sampling.guidance import dynamic_guidance, guided
from sat_models.sampling.options import DrawingKeywords, DrawingOptions, check_prompts, pair_of
from sat_models.sampling.samplers import Sample, ddim, dpm_2m_sde
from sat_models.sampling.schedule import steps_of
from sat_models.zoo.film_maker import FilmMaker, FilmState
from sat_models.zoo.painter import DrawingState, Painter

logger = logging.getLogger(__name__)

_DDIM = "-ddim"
"""How the names of the plain samplers end: DDIM with one guidance for all steps. The others are DPM-Solver++ (2M, SDE)
with the original's guidance that changes from step to step."""


class FilmPainter(Painter, FilmMaker):
    """CogVideoX with a text encoder before it and the film's decoder behind it.

    A film encodes the text (and the image), denoises all frames at once, drops what `keep` does not name, and decodes
    piece by piece.
    """

    config: FilmConfig

    def steps(self, prompt: str | Sequence[str], **options: Unpack[DrawingKeywords]) -> Iterator[DrawingState]:
        """Raises InputError: it makes films."""
        raise InputError("this model makes films, not images: call film (scripts/cli_demo_video.py)")

    draw = check = steps

    def film_steps(self, prompt: str, **options: Unpack[FilmKeywords]) -> Iterator[FilmState]:
        """See `FilmMaker`."""
        refuse_unknown(options.keys() - FilmKeywords.__annotations__.keys(), self.film, FilmKeywords.__annotations__)
        if not isinstance(prompt, str):
            raise InputError(f"the prompt is {prompt!r:.60}; a film is made of one text")
        check_prompts(prompt)
        chosen, image = self._film_options(options)
        return self._filmed(prompt, chosen, image)

    def _film_options(self, options: FilmKeywords) -> tuple[FilmOptions, Image.Image | None]:
        """Checked before any work, with a seed that all processes share, and the image."""
        config, given = self.config, given_frames(options.get("image"))
        frames = config.usual_frames if options.get("frames") is None else options["frames"]
        config.check_frames(frames)
        if (frames - 1) % config.frame_step:
            logger.warning(
                "%d frames: this model was trained on one more than a multiple of %d", frames, config.frame_step
            )
        size = config.usual_size if options.get("size") is None else pair_of(options["size"])
        config.check_size(*size)
        self._check_image(given.keys())
        drawing = DrawingOptions.of(
            config, steps=options.get("steps"), guidance=options.get("guidance"), sampler=options.get("sampler"),
            sized=False,
        )  # fmt: skip
        fps = float(config.fps) if options.get("fps") is None else options["fps"]
        check_fps(fps)
        image = load_image(given[0]) if given else None
        check_room(config, frames, size, self.dtype, free_bytes(self.device))
        runtime.in_step(self._check_parts)
        chosen = FilmOptions(
            frames=frames, fps=fps, size=size, seed=drawn_seed(options.get("seed")), guidance=drawing.guidance,
            steps=drawing.steps, sampler=drawing.sampler, images=tuple(given),
        )  # fmt: skip
        return chosen, image

    def _check_image(self, given: object) -> None:
        """Raise InputError unless there is an image where the model takes one, and it is for the first frame."""
        if self.config.takes_image and not given:
            raise InputError(
                "this model makes a film out of an image and a text: give an image (image=, --image), or take a model "
                "that needs none"
            )
        if not self.config.takes_image and given:
            raise InputError("this model makes films out of text alone; leave the image out, or take an I2V model")
        if given and set(given) != {0}:
            raise InputError(f"images were given for the frames {sorted(given)}; this model takes one, for frame 0")

    def _filmed(self, prompt: str, chosen: FilmOptions, image: Image.Image | None) -> Iterator[FilmState]:
        text = self.encode([prompt])
        shape = self.config.film_shape(chosen.frames, *chosen.size)
        generator = torch.Generator().manual_seed(chosen.seed)
        start = torch.randn(shape, generator=generator).unsqueeze(0)
        conditions = {} if image is None else {"image_latents": self._beginning(image, chosen, shape, generator)}
        draw = lambda index: torch.randn(shape, generator=generator).unsqueeze(0)  # noqa: E731
        drawing = DrawingOptions.of(
            self.config, steps=chosen.steps, guidance=chosen.guidance, sampler=chosen.sampler, sized=False
        )
        try:
            for sample in self._samples(start, text, drawing, conditions, draw):
                yield FilmState(sample.index, sample.of, chosen, self._developing(sample, chosen))
        finally:
            self._model.release()
            self._codec.release()

    def _developing(self, sample: Sample, chosen: FilmOptions) -> Callable[[], Film]:
        """What makes pixels of the latents after a step: of the last one the film, of others what it may become."""
        latents = sample.latents if sample.index == sample.of else sample.clean

        def develop() -> Film:
            if sample.index == sample.of:
                self._model.release()
            film = Film(self._codec.get().decode(latents[0, self.config.thrown_away :]), chosen.fps)
            self._codec.release()
            return film

        return develop

    def _beginning(
        self, image: Image.Image, chosen: FilmOptions, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """The latents of the image in the first frame, zeros in the others: [1, F, C, h, w]."""
        whole = torch.zeros(1, *shape)
        noise = torch.randn(shape[1:], generator=generator)
        latents = self._codec.get().image_latents(image, *chosen.size, noise)
        self._codec.release()
        whole[0, 0] = latents * self.config.image_scale
        return whole

    def denoise(
        self,
        start: Tensor,
        text: Tensor,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: str | None = None,
        image_latents: Tensor | None = None,
        noise: Tensor | None = None,
        seed: int | None = None,
    ) -> Iterator[Tensor]:
        """From noise to latents; gives them after each step, [B, F, C, h, w] in fp32.

        Args:
            start: noise, [B, F, C, h, w]; of CogVideoX 1.5 with the frame that is thrown away.
            text: [B, T, E], as `encode` gives it.
            steps, guidance, sampler: as in `film`. Of the samplers whose guidance changes, `guidance` is how far it
                goes beyond 1.
            image_latents: see the model.
            noise: what the sampler draws, [steps, 2, B, F, C, h, w]: the original draws twice in each step and takes
                the second from the second step on. None: drawn from `seed`.
            seed: None: a drawn one.

        Raises:
            InputError, ConfigError: as `film`, at the call.
        """
        self._check_image([0] if image_latents is not None else [])
        chosen = DrawingOptions.of(self.config, steps=steps, guidance=guidance, sampler=sampler, sized=False)
        wanted = (chosen.steps, 2, *start.shape)
        if noise is not None and tuple(noise.shape) != wanted:
            raise InputError(f"noise is {list(noise.shape)}; for this start and {chosen.steps} steps: {list(wanted)}")
        draw = lambda index: noise[index, min(index, 1)]  # noqa: E731
        if noise is None:
            generator = torch.Generator().manual_seed(drawn_seed(seed))
            draw = lambda index: torch.randn(start.shape, generator=generator)  # noqa: E731
        conditions = {"image_latents": image_latents} if image_latents is not None else {}
        return (sample.latents for sample in self._samples(start, text, chosen, conditions, draw))

    @torch.no_grad()
    def _samples(
        self, start: Tensor, text: Tensor, chosen: DrawingOptions, conditions: dict[str, Tensor],
        draw: Callable[[int], Tensor],
    ) -> Iterator[Sample]:  # fmt: skip
        plain = chosen.sampler.endswith(_DDIM)
        steps = steps_of(chosen.sampler.removesuffix(_DDIM), chosen.steps, self.config.snr_shift)
        guidance = chosen.guidance if plain else dynamic_guidance(chosen.guidance, chosen.steps)
        rows = {name: value.to(self.device, self.dtype) for name, value in conditions.items()}
        predict = guided(self.model, text.to(self.device, self.dtype), guidance, rows, dtype=self.dtype)
        start = start.to(self.device)
        yield from ddim(predict, start, steps) if plain else dpm_2m_sde(predict, start, steps, draw)
