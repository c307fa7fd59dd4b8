"""Weights that are named by an id of a hub, from the local cache or downloaded; and folders that are pushed to one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sat_models.checkpoint.output import MARKER_FILE
from sat_models.errors import CheckpointError
from sat_models.processing.hubs import modelscope_download, uses_modelscope

logger = logging.getLogger(__name__)

_WANTED = ("*.json", "*.safetensors", "tokenizer.model", "tokenizer/spiece.model")


def fetch(repository: str, *, further: Sequence[str] = ()) -> Path:
    """The folder of a hub repository's config, weights and tokenizer (HF_HUB_OFFLINE and HF_ENDPOINT are respected).

    Args:
        further: patterns of other files that are wanted.

    Raises:
        CheckpointError: neither in the cache nor to be had; the message says what to fetch and how to name it.
        MissingPackageError: ModelScope is asked for without its library.
    """
    elsewhere = uses_modelscope()
    download, place = _downloads(repository, elsewhere), _address(elsewhere)
    logger.info("looking for %s in the cache, then on %s", repository, place)
    try:
        return Path(download(repository, allow_patterns=[*_WANTED, *further]))
    except Exception as error:  # the hubs raise many types: offline, no such repository, gated, network, disk
        logger.debug("download of %s failed", repository, exc_info=True)
        raise CheckpointError(
            f"{repository} is not on this machine and could not be downloaded ({_reason(error)}). "
            f"Fetch {', '.join([*_WANTED, *further])} of {place}{repository} into a folder and name "
            "that folder."
        ) from error


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload a folder that is complete; gives its address.

    Args:
        folder: what was written; our own marker is left out.
        repository: its id, `name/model`; made if it is not there.
        private: make it so.

    Raises:
        CheckpointError: it was not uploaded; the folder stays as it is, and the message says how to go on.
    """
    try:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, ignore_patterns=[MARKER_FILE])
    except Exception as error:  # as in `fetch`; and no or a wrong token
        logger.debug("upload to %s failed", repository, exc_info=True)
        raise CheckpointError(
            f"{folder} is written, but it was not pushed to {repository} ({_reason(error)}). Log in (hf auth login, or "
            f"HF_TOKEN), then: hf upload {repository} {folder}"
        ) from error
    return f"{api.endpoint}/{repository}"


def _address(elsewhere: bool) -> str:
    """Where repositories lie."""
    if elsewhere:
        return "https://modelscope.cn/models/"
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/") + "/"


def _downloads(repository: str, elsewhere: bool) -> Callable[..., Any]:
    if elsewhere:
        return modelscope_download()
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise CheckpointError(
            f"{repository} is not on this machine, and downloading needs huggingface_hub: pip install huggingface_hub"
        ) from error
    return snapshot_download


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no details':.160}"
