"""Weights that are named by a Hugging Face id: from the local cache, or downloaded where there is a network."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from sat_models.errors import CheckpointError

logger = logging.getLogger(__name__)

_WANTED = ("*.json", "*.safetensors", "tokenizer.model", "tokenizer/spiece.model")


def fetch(repository: str, *, further: Sequence[str] = ()) -> Path:
    """The folder of a hub repository's config, weights and tokenizer (HF_HUB_OFFLINE is respected).

    Args:
        further: patterns of other files that are wanted.

    Raises:
        CheckpointError: neither in the cache nor to be had; the message says what to fetch and how to name it.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{repository} is not on this machine, and downloading needs huggingface_hub: pip install huggingface_hub"
        ) from error
    logger.info("looking for %s in the cache of huggingface_hub, then on the hub", repository)
    try:
        return Path(snapshot_download(repository, allow_patterns=[*_WANTED, *further]))
    except Exception as error:  # the hub raises many types: offline, no such repository, gated, network, disk
        logger.debug("download of %s failed", repository, exc_info=True)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no details"
        raise CheckpointError(
            f"{repository} is not on this machine and could not be downloaded ({type(error).__name__}: {reason:.160}). "
            f"Fetch {', '.join([*_WANTED, *further])} of https://huggingface.co/{repository} into a folder and name "
            "that folder."
        ) from error
