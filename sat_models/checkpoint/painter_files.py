"""The other parts of a painter on their way into a converted folder: text encoder, tokenizer, image autoencoder."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sat_models.checkpoint.huggingface import DIFFUSERS_STEM
from sat_models.checkpoint.layout import HF_CONFIG_FILE
from sat_models.checkpoint.painter_parts import (
    ENCODER_FOLDER,
    TOKENIZER_FOLDER,
    VAE_FOLDER,
    find_text_encoder,
    find_vae,
    read_vae,
    read_vae_file,
)
from sat_models.checkpoint.staging import write_tensors
from sat_models.config import LatentModelConfig
from sat_models.errors import CheckpointError
from sat_models.files import write_json
from sat_models.models.common.film_vae_keys import FILM_VAE, film_vae_to_sat
from sat_models.models.common.kl_keys import kl_to_sat

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
_TOKENIZER_CONFIG = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512}


@dataclass(frozen=True)
class PainterFiles:
    """What lies beside a painter's transformer.

    Attributes:
        encoder: folder of T5, and the file of its tokenizer; None where it is not there.
        vae: see `find_vae`; None where there is none.
        config: of the painter.
    """

    encoder: tuple[Path, Path] | None
    vae: Path | None
    config: LatentModelConfig

    @classmethod
    def beside(cls, step: Path, config: LatentModelConfig) -> PainterFiles:
        """Beside the weights in `step`; what is not there is left out."""
        found: list[tuple[Path, Path] | Path | None] = []
        for find in (lambda: find_text_encoder(step, config), lambda: find_vae(step, config)):
            try:
                found.append(find())
            except CheckpointError as error:
                logger.debug("not converted along: %s", error)
                found.append(None)
        return cls(*found, config=config)

    def bytes(self) -> int:
        """Of all files, about."""
        return sum(file.stat().st_size for file in self.files())

    def files(self) -> list[Path]:
        """All that is read."""
        vae = [self.vae] if self.vae is not None and self.vae.is_file() else []
        vae += sorted(self.vae.glob("*.safetensors")) if self.vae is not None and self.vae.is_dir() else []
        return [*vae, *(source for source, _ in self._encoder_files())]

    def link(self, folder: Path) -> None:
        """Links in a folder to where they lie, by the names under which they are looked for. Raises OSError."""
        if self.encoder is not None:
            source, tokenizer = self.encoder
            _link(source, folder / (ENCODER_FOLDER if tokenizer.parent != source else self.config.TEXT_FOLDER))
            if tokenizer.parent != source:
                _link(tokenizer.parent, folder / TOKENIZER_FOLDER)
        if self.vae is not None:
            _link(self.vae, folder / VAE_FOLDER / (self.vae.name if self.vae.is_file() else ""))

    def write_sat(self, folder: Path) -> None:
        """As the original's folders have them. Raises OSError, CheckpointError."""
        for source, _ in self._encoder_files():
            _copy(source, folder / self.config.TEXT_FOLDER / source.name)
        if self.vae is None:
            return
        (folder / VAE_FOLDER).mkdir(parents=True, exist_ok=True)
        if self.vae.is_file():
            weights = read_vae_file(self.vae)
        else:
            config, theirs = read_vae(self.vae, self.config.latent_scale)
            back = film_vae_to_sat if config.get("_class_name") == FILM_VAE else kl_to_sat
            weights = back(theirs, config)
        _save({name: value.clone() for name, value in weights.items()}, folder / VAE_FOLDER / self.config.VAE_FILE)

    def write_diffusers(self, folder: Path) -> dict[str, list[str | None]]:
        """As diffusers' pipelines have them. Gives their entries in `model_index.json`. Raises as `write_sat`."""
        parts = (ENCODER_FOLDER, TOKENIZER_FOLDER, VAE_FOLDER)
        entries: dict[str, list[str | None]] = {part: [None, None] for part in parts}
        for source, place in self._encoder_files():
            _copy(source, folder / place / source.name)
        if self.encoder is not None:
            config = folder / TOKENIZER_FOLDER / "tokenizer_config.json"
            if not config.is_file():
                write_json(config, _TOKENIZER_CONFIG)
            entries[ENCODER_FOLDER], entries[TOKENIZER_FOLDER] = (
                ["transformers", "T5EncoderModel"],
                ["transformers", "T5Tokenizer"],
            )
        if self.vae is not None:
            sizes, weights = read_vae(self.vae, self.config.latent_scale)
            (folder / VAE_FOLDER).mkdir(parents=True)
            write_json(folder / VAE_FOLDER / HF_CONFIG_FILE, {**sizes, **self.config.vae_settings})
            kept = {name: value.contiguous() for name, value in weights.items()}
            write_tensors(kept, folder / VAE_FOLDER / f"{DIFFUSERS_STEM}.safetensors", {"format": "pt"})
            entries[VAE_FOLDER] = ["diffusers", sizes.get("_class_name", "AutoencoderKL")]
        return entries

    def _encoder_files(self) -> Iterator[tuple[Path, str]]:
        """Each file, and its folder in a pipeline."""
        if self.encoder is None:
            return
        folder, tokenizer = self.encoder
        for pattern in (HF_CONFIG_FILE, *_WEIGHTS):
            yield from ((file, ENCODER_FOLDER) for file in sorted(folder.glob(pattern)))
        for name in _TOKENIZER_FILES:
            if (tokenizer.parent / name).is_file():
                yield tokenizer.parent / name, TOKENIZER_FOLDER


def _link(source: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink():
        place.unlink()
    if not place.exists():
        place.symlink_to(source.resolve())


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _save(weights: dict[str, Tensor], file: Path) -> None:
    if file.suffix == ".safetensors":
        return write_tensors(weights, file, {"format": "pt"})
    with file.open("wb") as opened:
        torch.save({"state_dict": weights}, opened)
        opened.flush()
        os.fsync(opened.fileno())
