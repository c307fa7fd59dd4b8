"""Latents of images and what a text encoder gives of their texts, on disk: encoded once, whatever trains on them.

<folder>/cache.json                      what they were made with: weights of both encoders, dtype, …
<folder>/images/<content and frame>      mean and logarithm of the variance of an image's latents
<folder>/texts/<text>                    a text as the model reads it

An entry is named by the content of what it was made of, so that another image of the same name has another entry.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sat_models.checkpoint.staging import write_tensors
from sat_models.config import read_json
from sat_models.digests import digest_of
from sat_models.errors import ConfigError, InputError
from sat_models.files import write_json, writing
from sat_models.processing.image_codec import ImageCodec
from sat_models.processing.text_encoder import TextEncoder
from sat_models.training.drawing.frames import Frame

logger = logging.getLogger(__name__)

FACTS_FILE = "cache.json"
_VALUE = "value"


class LatentCache:
    """A folder of latents and encoded texts.

    Args:
        folder: made when needed.
        facts: what entries are made with, by name, as JSON values.
        rank, world: of this process among those that share the work.

    Raises:
        ConfigError: the folder holds entries that were made with something else.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], *, rank: int = 0, world: int = 1) -> None:
        self.folder, self.facts, self.rank, self.world = folder, dict(facts), rank, world
        file = folder / FACTS_FILE
        if file.is_file():
            self._check(read_json(file))
            return
        with writing(folder):
            (folder / "images").mkdir(parents=True, exist_ok=True)
            (folder / "texts").mkdir(exist_ok=True)
            write_json(file, self.facts)

    def _check(self, made_with: Mapping[str, Any]) -> None:
        for name, value in self.facts.items():
            if made_with.get(name) != value:
                raise ConfigError(
                    f"{self.folder} holds latents that were made with {name} = {made_with.get(name)!s:.40}, but this "
                    f"run has {value!s:.40}: name another folder with --latent_cache, or remove that one"
                )

    def image_file(self, digest: str, frame: Frame) -> Path:
        """Where the latents of an image lie; `digest` is that of its content."""
        return self.folder / "images" / f"{digest_of([digest, frame.scaled, frame.size])}.safetensors"

    def text_file(self, text: str) -> Path:
        """Where an encoded text lies."""
        return self.folder / "texts" / f"{digest_of(text)}.safetensors"

    def add_texts(self, texts: Iterable[str], encoder: Callable[[], TextEncoder], dtype: torch.dtype) -> None:
        """Encode what is not here yet.

        Args:
            encoder: opens it, if it is needed.
            dtype: of the encoder, and of what is kept.

        Raises:
            InputError: a text whose encoding is no number, with the dtype.
        """
        long = []
        for text in self._absent(texts, self.text_file, "encoding texts"):
            reader = encoder()
            if cut := reader.cut(text):
                long.append(cut)
            value = reader.encode([text])[0]
            _check_numbers(value, f"the encoding of the text '{text:.60}'", dtype)
            self._write(self.text_file(text), value.to(dtype))
        if long:
            logger.warning(
                "%d text(s) are longer than the model reads; of the first one '%.200s' is left out", len(long), long[0]
            )

    def add_images(
        self,
        images: Mapping[tuple[Path, Frame], str],
        codec: Callable[[], ImageCodec],
        dtype: torch.dtype,
    ) -> None:
        """Encode what is not here yet.

        Args:
            images: digest of the content by file and frame.
            codec: opens it, if it is needed.
            dtype: of the codec, and of what is kept; fp16 is kept in fp32, as the codec computes then.

        Raises:
            InputError: an image that cannot be read, or whose latents are no numbers, with the dtype.
        """
        kind = torch.float32 if dtype == torch.float16 else dtype

        def place(item: tuple[Path, Frame]) -> Path:
            return self.image_file(images[item], item[1])

        for image, frame in self._absent(images, place, "encoding images"):
            value = codec().moments(frame.pixels(image)[None])[0]
            _check_numbers(value, f"the latents of {image}", kind)
            self._write(place((image, frame)), value.to(kind))

    def read(self, file: Path) -> Tensor:
        """An entry in fp32.

        Raises:
            InputError: it is not there, or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)[_VALUE].float()
        except (SafetensorError, OSError, KeyError) as error:
            raise InputError(
                f"{file} cannot be read ({error!s:.80}); remove it, and the next start makes it anew"
            ) from error

    def _absent(self, items: Iterable[Any], place: Callable[[Any], Path], what: str) -> Sequence[Any]:
        """This process's share of what is to be made, each once."""
        each = list({place(item): item for item in items}.values())
        absent = [item for item in each[self.rank :: self.world] if not place(item).is_file()]
        return tqdm(absent, desc=what, disable=None if absent else True)

    def _write(self, file: Path, value: Tensor) -> None:
        with writing(file):
            write_tensors({_VALUE: value.contiguous().cpu()}, file, {"format": "pt"})


def _check_numbers(value: Tensor, what: str, dtype: torch.dtype) -> None:
    if not torch.isfinite(value).all():
        raise InputError(
            f"{what} are no numbers: the encoder ran in {dtype}, in which it overflows, or its weights are damaged. "
            "Use --precision bf16 or fp32."
        )
