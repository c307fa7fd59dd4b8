"""The task of painters: images from texts, learned on latents that are encoded once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from mixins.base import ZooModel
from sat_models import runtime
from sat_models.checkpoint.io import write_model_config
from sat_models.checkpoint.painter_files import PainterFiles
from sat_models.config import DiffusionConfig
from sat_models.digests import digest_of_files, digests_of_files
from sat_models.errors import ConfigError, InputError
from sat_models.training.activations import Probe
from sat_models.training.drawing.captions import read_captions, text_of
from sat_models.training.drawing.data import Item, LatentDataset, LatentInputs
from sat_models.training.drawing.evaluating import DrawingEvaluator
from sat_models.training.drawing.frames import Frame, Size, buckets, frame_of
from sat_models.training.drawing.latents import LatentCache
from sat_models.training.drawing.loss import VPrediction
from sat_models.training.grounding.annotated import size_of
from sat_models.training.records import EntryError, Record
from sat_models.training.resuming import base_of
from sat_models.training.settings import FinetuneSettings
from sat_models.training.split import load_train_valid
from sat_models.zoo import load_config, load_pretrained
from sat_models.zoo.painter import Painter

logger = logging.getLogger(__name__)

CACHE_FOLDER = "latents"
Framed = list[tuple[Record, Frame]]
"""Records with what becomes of their image."""


class DrawingTask:
    """See `Task`."""

    KIND: ClassVar[str] = "drawing"
    TRAINABLE: ClassVar[str] = "attention"

    def __init__(self, settings: FinetuneSettings) -> None:
        self.settings, self.config = settings, load_config(settings.from_pretrained)
        if not isinstance(self.config, DiffusionConfig):
            raise ConfigError(
                f"{settings.from_pretrained} holds a {self.config.model_class}; of the models that draw, fine-tuning "
                "takes those that are diffusion transformers made of SAT's mixins, such as CogView3-Plus"
            )
        if settings.best_by != "loss":
            raise ConfigError(f"--best_by {settings.best_by} is a score of answers; a painter has the loss alone")
        self.size = _size(settings, self.config)
        self._sizes = buckets(self.config, self.size, one=not settings.aspect_buckets)
        train, valid = load_train_valid(
            list(settings.train_data),
            valid_data=list(settings.valid_data) or None,
            share=settings.valid_share,
            seed=settings.seed,
            on_bad=settings.on_bad_sample,
            reader=read_captions,
            image_root=settings.image_root,
        )
        self.bad: dict[str, str] = {}
        self._framed, self._valid = self._frames(train), self._frames(valid)
        if not self._framed:
            raise InputError(f"no usable image in {', '.join(settings.train_data)}: {_first(self.bad)}")
        self.records = [record for record, _ in self._framed]
        self.objective = VPrediction(self.config.snr_shift)
        self.extra: Mapping[str, Any] = {}
        self.evaluator: DrawingEvaluator | None = None
        self._painter: Painter | None = None
        self._encoders: str | None = None

    def _frames(self, records: Sequence[Record]) -> Framed:
        """What becomes of each image; those that cannot be read are bad samples."""
        framed: Framed = []
        for record in records:
            try:
                framed.append((record, frame_of(size_of(record.images[0]), self._sizes)))
            except EntryError as error:
                if self.settings.on_bad_sample == "error":
                    raise InputError(f"{record.source}: {error} (on_bad='skip' leaves bad samples out)") from error
                logger.warning("bad sample %s: %s", record.source, error)
                self.bad[record.source] = str(error)
        return framed

    def facts(self) -> dict[str, Any]:
        """See `Task`."""
        return {"image_size": list(self.size), "latents": self._made_with_digest()}

    def _made_with_digest(self) -> str:
        """Of the weights of the text encoder and the image codec."""
        if self._encoders is None:
            beside = PainterFiles.beside(base_of(self.settings.from_pretrained).step_folder, self.config)
            self._encoders = digest_of_files(beside.files())
        return self._encoders

    def summary(self, samples: int) -> str:
        """See `Task`."""
        count, settings = len(self._framed), self.settings
        shapes = Counter(frame.size for _, frame in self._framed).most_common()
        named = ", ".join(f"{number} of {width}x{height}" for (width, height), number in shapes[:6])
        enlarged = sum(frame.enlarged for _, frame in self._framed)
        if enlarged:
            logger.warning("%d image(s) have less pixels than they are trained with, and are enlarged", enlarged)
        return (
            f"{count} image(s) with texts, {len(self._valid)} for validation; {samples} per step, "
            f"{settings.train_iters} steps ({settings.train_iters * samples / count:.3g} epochs), at most "
            f"{max(map(self._tokens, (frame for _, frame in self._framed)))} tokens each\n"
            f"sizes: {named}{f', and {len(shapes) - 6} more' if len(shapes) > 6 else ''}"
        )

    def _tokens(self, frame: Frame) -> int:
        token = self.config.pixels_per_latent * self.config.patch_size
        return self.config.text_length + (frame.size[0] // token) * (frame.size[1] // token)

    def probe(self) -> Probe:
        """See `Task`."""
        config, rows = self.config, self.settings.batch_size
        largest = max((frame for _, frame in self._framed), key=self._tokens)
        shape = (rows, *config.latent_shape(*largest.size))

        def run(model: ZooModel, dtype: torch.dtype) -> torch.Tensor:
            inputs = LatentInputs(
                latents=torch.empty(shape, device="meta"),
                noise=torch.empty(shape, device="meta"),
                timestep=torch.zeros(rows),
                text=torch.empty(rows, config.text_length, config.text_hidden_size, dtype=dtype, device="meta"),
                conditions={name: torch.tensor([pair] * rows) for name, pair in largest.conditions().items()},
                weights=torch.ones(rows),
            )
            return self.objective(model, inputs).total

        numbers = 4 * torch.Size(shape).numel()
        return Probe(run, config.num_layers, lambda dtype: 3 * numbers)  # noise, v, and the gradient of v

    def prepare(self, model: ZooModel) -> None:
        """See `Task`: nothing."""

    def open(self, device: torch.device, dtype: torch.dtype) -> ZooModel:
        """See `Task`. The encoders are read, asked once, and dropped, before the transformer is read."""
        settings = self.settings
        painter = load_pretrained(
            settings.from_pretrained, device=device, dtype=dtype, quant=settings.quant, quant_text=settings.quant_text,
            task=self.KIND,
        )  # fmt: skip
        prompts = self._prompts()
        painter.check(prompts or "an image", size=self.size, steps=settings.sample_steps)
        self._painter, cache = painter, self._filled_cache(painter, prompts)
        self.train = self._dataset(cache, self._framed, settings.text_dropout)
        valid = self._dataset(cache, self._valid, 0.0) if self._valid else None
        if settings.eval_interval and (valid or prompts):
            self.evaluator = DrawingEvaluator(
                painter=painter,
                dataset=valid,
                batch_size=settings.batch_size,
                objective=self.objective,
                prompts=prompts,
                text=torch.stack([cache.read(cache.text_file(prompt)) for prompt in prompts] or [torch.empty(0)]),
                size=self.size,
                steps=settings.sample_steps,
                seed=settings.seed,
            )
        return painter.model

    def _prompts(self) -> list[str]:
        """What is drawn while the model trains."""
        settings = self.settings
        if not settings.eval_interval:
            return []
        given = list(settings.sample_prompts) or [text_of(record) for record, _ in self._valid or self._framed]
        return list(dict.fromkeys(given))[: settings.sample_images]

    def _filled_cache(self, painter: Painter, prompts: Sequence[str]) -> LatentCache:
        """With all that is needed. On GPUs the processes share the work; a CPU has the memory of one encoder."""
        settings, both = self.settings, [*self._framed, *self._valid]
        place = Path(settings.latent_cache or Path(settings.save_path) / CACHE_FOLDER).expanduser()
        first, workers = runtime.rank() == 0, runtime.world_size() if painter.device.type == "cuda" else 1
        made_with = {
            "encoders": runtime.broadcast_object(runtime.in_step(lambda: self._made_with_digest() if first else None)),
            "dtype": str(painter.dtype),
            "text_length": self.config.text_length,
            "quant_text": settings.quant_text,
        }
        runtime.in_step(lambda: LatentCache(place, made_with) if first else None)  # the others find it made
        cache = LatentCache(place, made_with, rank=runtime.rank(), world=workers)
        files = [record.images[0] for record, _ in both]
        self._digests = runtime.broadcast_object(runtime.in_step(lambda: digests_of_files(files) if first else None))

        def fill() -> None:
            if runtime.rank() >= workers:
                return
            texts = [text_of(record) for record, _ in both]
            cache.add_texts([*texts, *prompts], painter.text_encoder.get, painter.dtype)
            painter.text_encoder.release()
            images = {(record.images[0], frame): self._digests[record.images[0]] for record, frame in both}
            cache.add_images(images, painter.codec.get, painter.dtype)
            painter.codec.release()

        runtime.in_step(fill)
        return cache

    def _dataset(self, cache: LatentCache, framed: Framed, dropout: float) -> LatentDataset:
        items = [self._item(cache, record, frame) for record, frame in framed]
        data = LatentDataset(items, scale=self.config.latent_scale, seed=self.settings.seed, text_dropout=dropout)
        data.bad.update(self.bad)
        return data

    def _item(self, cache: LatentCache, record: Record, frame: Frame) -> Item:
        image = cache.image_file(self._digests[record.images[0]], frame)
        text = cache.text_file(text_of(record))
        return Item(
            record.source, frame.size, self._tokens(frame), lambda: (cache.read(image), cache.read(text)),
            frame.conditions(),
        )  # fmt: skip

    def write_config(self, folder: Path) -> None:
        """See `Task`; the other parts are linked to, so that a step whose weights are all there can draw."""
        write_model_config(folder, self._painter.config)
        PainterFiles.beside(self._painter.checkpoint.step_folder, self.config).link(folder)

    @classmethod
    def try_it(cls, settings: FinetuneSettings, merged: str) -> list[tuple[str, str, list[str]]]:
        """See `Task`."""
        arguments = ["--from_pretrained", merged, "--prompt", "PROMPT", "--output", "out.png"]
        return [("Draw with it:", "cli_demo_image.py", arguments)]


def _size(settings: FinetuneSettings, config: DiffusionConfig) -> Size:
    """Width and height that are asked for. Raises ConfigError, InputError."""
    given = settings.image_size
    if not given:
        return config.usual_size
    if len(given) > 2:
        raise ConfigError(f"--image_size is {' '.join(map(str, given))}; it takes width and height, or one side")
    size = (given[0], given[-1])
    config.check_size(*size)
    return size


def _first(bad: Mapping[str, str]) -> str:
    return next(iter(bad.values()), "there is nothing to read")
