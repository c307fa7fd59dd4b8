"""CogVideo from a prompt to a film: stage 1 writes frames far apart, stage 2 those between them, again and again, and
CogView2's model makes each three times as large.

Source: github.com/THUDM/CogVideo at 51c42e9 (branch `CogVideo`), `cogvideo_pipeline.py` and
`scripts/inference_cogvideo_pipeline.sh`: temperatures, limits and weights are those of its released demo, which guides
stage 1 alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, Unpack

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sat_models import runtime
from sat_models.checkpoint.ice_files import read_clusters
from sat_models.checkpoint.memory import free_bytes
from sat_models.config.image_tokens import CODE_SIDE
from sat_models.errors import ConfigError, InputError, refuse_unknown
from sat_models.processing.film import Film
from sat_models.processing.image import load_image
from sat_models.processing.image_codec import to_images
from sat_models.processing.prompt_language import warn_of_language
from sat_models.sampling.codes import CodeChoice, enlarge
from sat_models.sampling.film_options import FilmKeywords, FilmOptions, drawn_seed, given_frames
from sat_models.sampling.frames import IN_BETWEEN, write_frames
from sat_models.sampling.options import check_prompts
from sat_models.sampling.writing_options import check_code_size
from sat_models.zoo.film_maker import FilmMaker, FilmState
from sat_models.zoo.token_painter import TokenPainter, generator_of

CLUSTERS = "cluster_label2.npy"
BETWEEN, ENLARGE = "cogvideo-stage2", "cogview2-dsr"
_FIRST_FRAMES = 5
_SECONDS = 4.0
"""That a film of any number of frames lasts; its first frames are that much, divided by 4, apart."""
_LADDER = {9: (2.0,), 17: (2.0, 1.0), 33: (2.0, 1.0, 0.5)}
"""By the number of frames: what stage 2 is told of the time that its five frames take."""
_GUIDANCE, _TEXT_WEIGHT = 3.0, 1.4
_GUIDE, _OF_FILMS, _OF_IMAGES = "视频", " 视频", " 高清摄影"
"""The text that is moved away from; what stands behind a guided prompt; and behind that of the first frame."""


class FilmWriter(TokenPainter, FilmMaker):
    """Stage 1 with its companions. See `TokenPainter` for the arguments."""

    def film_steps(self, prompt: str, **options: Unpack[FilmKeywords]) -> Iterator[FilmState]:
        """See `FilmMaker`; frames 5, 9, 17 or 33, an image of the first frame; a step is a frame, small or large."""
        known = FilmKeywords.__annotations__
        refuse_unknown(options.keys() - known.keys(), self.film_steps, known)
        (text,) = check_prompts([prompt])
        chosen, first = self._chosen(options)
        large = chosen.size == self.config.usual_size
        needed = [*([BETWEEN] if chosen.frames > _FIRST_FRAMES else []), *([ENLARGE] if large else [])]
        runtime.in_step(lambda: self._others.check(*needed, clusters=CLUSTERS))
        warn_of_language(text, self.config.PROMPT_LANGUAGES)
        self._check_text(text)
        self._check_memory(chosen)
        return self._made(text, chosen, first, large=large)

    def _chosen(self, options: FilmKeywords) -> tuple[FilmOptions, Image.Image | None]:
        """Checked, and the image of the first frame."""
        if self.config.cogvideo_stage != 1:
            raise ConfigError(f"{self.checkpoint.folder} is stage 2, which goes on from stage 1: name stage 1's folder")
        if named := [name for name in ("steps", "sampler") if options.get(name) is not None]:
            raise ConfigError(f"{' and '.join(named)}: CogVideo writes a code at a time and has none; leave it out")
        frames = options.get("frames")
        frames = max(_LADDER) if frames is None else frames
        allowed = (_FIRST_FRAMES, *_LADDER)
        if frames not in allowed:
            raise InputError(f"frames is {frames!r:.40}; this model makes {', '.join(map(str, allowed))}")
        images = given_frames(options.get("image"))
        if set(images) - {0}:
            raise InputError(f"an image was given for frame {max(images)}; this model takes one for the first frame, 0")
        guidance, fps = options.get("guidance"), options.get("fps")
        chosen = FilmOptions(
            frames=frames,
            fps=(frames - 1) / _SECONDS if fps is None else fps,
            size=check_code_size(options.get("size"), self.config.sides(self.config.frame_size)),
            guidance=_GUIDANCE if guidance is None else guidance,
            seed=drawn_seed(options.get("seed")),
            images=tuple(images),
        )
        return chosen, load_image(images[0]) if images else None

    def _check_text(self, prompt: str) -> None:
        most = self.config.layout[0]
        for text in (self._timed(prompt + _OF_FILMS, _SECONDS), self._ids(prompt + _OF_IMAGES)):
            if len(text) > most:
                raise InputError(f"the prompt has {len(text)} tokens with the words around it; {most} at most")

    def _check_memory(self, chosen: FilmOptions) -> None:
        """Raises InputError where keys, values and one model will not fit."""
        config, item, size = self.config, self.dtype.itemsize, self.config.frame_size
        rows = max(chosen.frames // 4, 2)  # the windows of stage 2, or the text and its guide
        tokens = 2 * config.layout[0] + (1 + _FIRST_FRAMES) * size
        caches = 2 * config.num_layers * config.hidden_size * tokens * rows * item
        own = 16 * config.num_layers * config.hidden_size**2 + config.vocab_size * config.hidden_size
        needed = (caches + own * item) // runtime.world_size()
        free = free_bytes(self.device)
        if free is not None and needed > free:
            raise InputError(
                f"a film of {chosen.frames} frames takes about {needed / 2**30:.1f} GB with its model in "
                f"{str(self.dtype).removeprefix('torch.')}, and {free / 2**30:.1f} GB are free: use fewer frames, more "
                "processes or another dtype"
            )

    def _timed(self, text: str, seconds: float) -> list[int]:
        """Ids of a text with the time that its frames take before it."""
        return [*self._ids(f"{seconds}秒"), self._special("new_line"), *self._ids(text)]

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor(ids, device=self.device)

    def _made(self, prompt: str, chosen: FilmOptions, first: Image.Image | None, *, large: bool) -> Iterator[FilmState]:
        """One model after the other is in memory."""
        ladder = _LADDER.get(chosen.frames, ())
        of = _FIRST_FRAMES + 2 * len(ladder) + (chosen.frames if large else 0)
        try:
            for index, frames in enumerate(self._stages(prompt, chosen, first, ladder, large=large), start=1):
                yield FilmState(index, of, chosen, lambda frames=frames: self._film(frames, chosen))
        finally:
            for part in (self._model, *self._others.models.values()):
                part.release()

    def _stages(
        self, prompt: str, chosen: FilmOptions, first: Image.Image | None, ladder: tuple[float, ...], *, large: bool
    ) -> Iterator[list[Tensor]]:
        """The codes of each frame that is there, after each step."""
        clusters = read_clusters(self.checkpoint.step_folder, CLUSTERS, self.config.image_codes)
        drawn = CodeChoice(temperature=1.05, best=12, clusters=clusters, cluster_temperature=0.89)
        how = {"start": self._special("start_of_image"), "generator": generator_of(chosen.seed)}
        if first is None:
            image_choice = CodeChoice(temperature=1.0, best=16, clusters=clusters, cluster_temperature=0.89)
            frames = [self._first_frame(prompt, choice=image_choice, **how)]
        else:
            frames = [self._codes_of(first)]
        yield frames
        for made in self._following(prompt, frames[0], chosen.guidance, choice=drawn, **how):
            frames = [*frames, made]
            yield frames
        self._model.release()
        for seconds in ladder:
            for frames in self._between(prompt, frames, seconds, choice=drawn, **how):  # noqa: B020
                yield frames
        if large:
            if ladder:
                self._others.model(BETWEEN).release()
            choice = CodeChoice(temperature=1.0, best=6, clusters=clusters, cluster_temperature=0.6)
            text, model = self._tensor(self._ids(prompt))[None], self._others.model(ENLARGE)
            for number, small in enumerate(frames):
                one = enlarge(model.get(), text, small[None], choice=choice, **how)[0]
                frames = [*frames[:number], one, *frames[number + 1 :]]
                yield frames

    def _first_frame(self, prompt: str, **how: Any) -> Tensor:
        """As CogView2 writes an image, without the second attention: [F]."""
        text = self._tensor(self._ids(prompt + _OF_IMAGES))
        none = text.new_zeros(1, 0, self.config.frame_size)
        (frame,) = write_frames(self.model, text, none, order=(0,), text_weight=_TEXT_WEIGHT, second=False, **how)
        return frame[0]

    def _following(self, prompt: str, first: Tensor, guidance: float, **how: Any) -> Iterator[Tensor]:
        """Stage 1: the frames behind the first, [F] each; away from another text, or closer to its own."""
        if guidance == 1:
            text, told = self._timed(prompt, _SECONDS), {"text_weight": _TEXT_WEIGHT}
        else:
            text, guide = self._timed(prompt + _OF_FILMS, _SECONDS), self._tensor(self._timed(_GUIDE, _SECONDS))
            told = {"text_weight": 0.0, "guide": guide, "guidance": guidance}
        order = range(_FIRST_FRAMES)
        for frame in write_frames(self.model, self._tensor(text), first[None, None], order=order, **told, **how):
            yield frame[0]

    def _between(self, prompt: str, frames: list[Tensor], seconds: float, **how: Any) -> Iterator[list[Tensor]]:
        """Stage 2: all frames with one more behind each, first behind every second one."""
        given = torch.stack([torch.stack(frames[n : n + 3]) for n in range(0, len(frames) - 2, 2)])
        text, model = self._tensor(self._timed(prompt, seconds)), self._others.model(BETWEEN).get()
        made: list[Tensor] = []
        for frame in write_frames(model, text, given, order=IN_BETWEEN, text_weight=_TEXT_WEIGHT, **how):
            made.append(frame)
            all_ = [
                [kept, *(one[number // 2] for one in made[number % 2 : number % 2 + 1])]
                for number, kept in enumerate(frames[:-1])
            ]
            yield [*itertools.chain(*all_), frames[-1]]

    def _codes_of(self, image: Image.Image) -> Tensor:
        """The middle of an image as the codes of a frame, [F]."""
        square = ImageOps.fit(image, (self.config.frame_side * CODE_SIDE,) * 2, Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255
        return self._others.pixels.get().encode(pixels.to(self.device), CODE_SIDE).flatten().clone()

    def _film(self, frames: list[Tensor], chosen: FilmOptions) -> Film:
        pixels, images = self._others.pixels.get(), []
        for codes in frames:
            side = math.isqrt(len(codes))
            images += to_images(pixels.decode(codes.view(1, side, side), CODE_SIDE) * 2 - 1)
        self._others.pixels.release()
        largest = max(image.size for image in images)
        return Film.of_images([image.resize(largest, Image.Resampling.NEAREST) for image in images], chosen.fps)
