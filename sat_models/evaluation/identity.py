"""Fingerprints of all that the answers of a run depend on, so that an old answer never passes for a new one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sat_models.checkpoint.adapter import adapter_files
from sat_models.digests import digest_of, digest_of_files
from sat_models.evaluation.samples import Sample
from sat_models.models.common.quantisation import Quantisation
from sat_models.processing.tokenizer_files import COMPANIONS

if TYPE_CHECKING:
    from sat_models.zoo.vlm import VLM

logger = logging.getLogger(__name__)

_CAME_LATER = {"scores": False}
"""Settings that files of earlier versions lack, and what was the case then."""


def model_identity(vlm: VLM, name_or_path: str) -> dict[str, Any]:
    """Weights, config, tokenizer and adapter by their SHA-256; dtype, bits, kind of device and prompt style by name.

    Args:
        vlm: as it was loaded.
        name_or_path: what it was loaded from.
    """
    adapter, stored = adapter_files(name_or_path), Quantisation.of(vlm.config)
    size = sum(file.stat().st_size for file in vlm.checkpoint.files)
    logger.info("taking the fingerprint of %.1f GB of weights", size / 1e9)
    return {
        "weights_sha256": digest_of_files(vlm.checkpoint.files),
        "config_sha256": digest_of(vlm.config.to_dict()),
        "tokenizer_sha256": digest_of_files(_tokenizer_files(vlm.tokenizer_file)) if vlm.tokenizer_file else None,
        "adapter_sha256": digest_of_files(adapter) if adapter else None,
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "bits": stored.bits if stored else None,
        "full_precision": list(stored.skip) if stored else [],
        "head_of_8_bits": vlm.model.quantised_head,
        "cache": vlm.model.cache_form or "auto",
        "device": vlm.device.type,
        "prompt_style": vlm.processor.version,
        "boxes": vlm.processor.form.boxes,
    }


def _tokenizer_files(file: Path) -> list[Path]:
    """A tokenizer's file, and those beside it that say which special tokens there are."""
    beside = (file.with_name(name) for name in COMPANIONS)
    return [file, *(path for path in beside if path.is_file())]


def questions_digest(samples: Sequence[Sample]) -> str:
    """Of what is asked: ids, names of pictures, words, prompts. What is right may change: scores are made anew."""
    return digest_of([[sample.id, sample.image.name, dict(sample.words), sample.prompt] for sample in samples])


def images_digest(samples: Sequence[Sample]) -> str:
    """Of the bytes of the image of each sample.

    Raises:
        InputError: one cannot be read.
    """
    return digest_of_files(sample.image for sample in samples)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of `now` was otherwise, for a message; "" where nothing was."""
    before = {**_CAME_LATER, **before}
    differ = [name for name, value in now.items() if before.get(name) != value]
    return "; ".join(f"{name} {_shown(before.get(name))} -> {_shown(now[name])}" for name in differ)


def _shown(value: Any) -> str:
    """A setting for a message; of a fingerprint its beginning."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else repr(value)
