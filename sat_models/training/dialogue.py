"""The task of models that talk: answers to questions about images, or pairs of answers."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from mixins.base import ZooModel
from mixins.packed_attention import PACKED_NAME, PackedLanesMixin
from sat_models.checkpoint.io import write_model_config
from sat_models.training.activations import Probe, text_probe
from sat_models.training.data import VLMDataset
from sat_models.training.data_report import images_warning
from sat_models.training.evaluating import Evaluator
from sat_models.training.grounding.asking import asking_from
from sat_models.training.losses import NextTokens, Objective, Preference
from sat_models.training.packing import PackedDataset, check_packs
from sat_models.training.pairs import PairDataset
from sat_models.training.settings import FinetuneSettings
from sat_models.training.split import load_train_valid, validation_folders
from sat_models.zoo import load_config, load_pretrained, load_processor
from sat_models.zoo.vlm import VLM

logger = logging.getLogger(__name__)


class DialogueTask:
    """See `Task`."""

    KIND: ClassVar[str] = "dialogue"
    TRAINABLE: ClassVar[str] = "expert"

    def __init__(self, settings: FinetuneSettings) -> None:
        self.settings, self.config = settings, load_config(settings.from_pretrained)
        self._tokens = {"local_tokenizer": settings.local_tokenizer, "version": settings.version}
        self.processor = load_processor(settings.from_pretrained, **self._tokens)
        self.train, self.valid = self._datasets()
        self.records, self.objective = self.train.records, self._objective()
        self.extra: Mapping[str, Any] = {"version": self.train.version}
        self.evaluator: Evaluator | None = None
        self._vlm: VLM | None = None
        if self.valid is not None and settings.eval_interval:
            asked = (settings.batch_size, settings.eval_samples, settings.eval_tokens)
            self.evaluator = Evaluator(self.valid, *asked, objective=self.objective)

    def _datasets(self) -> tuple[VLMDataset, VLMDataset | None]:
        settings = self.settings
        train, valid = load_train_valid(
            list(settings.train_data),
            valid_data=list(settings.valid_data) or None,
            share=settings.valid_share,
            seed=settings.seed,
            on_bad=settings.on_bad_sample,
            format=settings.data_format,
            prompt=settings.prompt,
            image_root=settings.image_root,
            asking=asking_from(settings.box_tasks, settings.box_templates, seed=settings.seed, prompt=settings.prompt),
        )
        options = {"version": settings.version, "max_length": settings.max_length, "on_bad": settings.on_bad_sample}
        if settings.pack:
            check_packs(self.config)
        rows = PairDataset if settings.objective == "dpo" else VLMDataset
        return (
            (PackedDataset if settings.pack else rows)(train, self.processor, **options),
            rows(valid, self.processor, **options) if valid else None,
        )

    def _objective(self) -> Objective:
        settings = self.settings
        if settings.objective == "dpo":
            return Preference(settings.dpo_beta, settings.dpo_label_smoothing)
        return NextTokens()

    def facts(self) -> dict[str, Any]:
        """See `Task`."""
        packed = self.train.max_length if self.settings.pack else None
        return {"version": self.train.version, "packed to": packed}

    def _longest(self) -> int:
        return min(max(self.train.lengths), self.settings.max_length or self.processor.max_length)

    def summary(self, samples: int) -> str:
        """See `Task`."""
        settings, train = self.settings, self.train
        kind = "pair(s) of answers" if settings.objective == "dpo" else "training sample(s)"
        rows = f" in {len(train)} rows" if settings.pack else ""
        if warning := images_warning(len(train), train.with_images()):
            logger.warning("training samples: %s", warning)
        return (
            f"{train.samples} {kind}{rows}, {len(self.valid) if self.valid else 0} for validation; {samples} "
            f"{'rows ' if settings.pack else ''}per step, "
            f"{settings.train_iters} steps ({settings.train_iters * samples / len(train):.3g} epochs), "
            f"version {train.version}, longest about {self._longest()} tokens"
        )

    def probe(self) -> Probe:
        """See `Task`."""
        rows = self.settings.batch_size * (2 if self.settings.objective == "dpo" else 1)
        return text_probe(self.config, rows, self._longest(), self.train.largest_images or 1, packed=self.settings.pack)

    def prepare(self, model: ZooModel) -> None:
        """See `Task`."""
        if self.settings.pack:
            model.add_mixin(PACKED_NAME, PackedLanesMixin())

    def open(self, device: torch.device, dtype: torch.dtype) -> ZooModel:
        """See `Task`."""
        settings = self.settings
        self._vlm = load_pretrained(
            settings.from_pretrained, device=device, dtype=dtype, quant=settings.quant, **self._tokens
        )
        return self._vlm.model

    def write_config(self, folder: Path) -> None:
        """See `Task`."""
        vlm = self._vlm
        config = dataclasses.replace(vlm.config, text_processor_version=vlm.processor.version)
        write_model_config(folder, config, tokenizer_file=vlm.tokenizer_file)

    @classmethod
    def try_it(cls, settings: FinetuneSettings, merged: str) -> list[tuple[str, str, list[str]]]:
        """See `Task`."""
        read = {name: getattr(settings, name) for name in ("prompt", "data_format", "image_root", "box_templates")}
        tasks = [f"{task}={share:g}" for task, share in (settings.box_tasks or {}).items()]
        data = settings.valid_data or validation_folders(settings.train_data) or settings.train_data
        named = (part for name, value in read.items() if value for part in (f"--{name}", str(value)))
        return [
            (
                "Ask it (give a picture and a question, or leave both out to chat):",
                "cli_demo_sat.py",
                ["--from_pretrained", merged, "--image", "PICTURE", "--query", "QUESTION"],
            ),
            (
                "Evaluate it:",
                "evaluate.py",
                ["--task", "data", "--from_pretrained", merged, "--data", *map(str, data), *named]
                + (["--box_tasks", *tasks] if tasks else []),
            ),
        ]
