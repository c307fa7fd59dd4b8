"""Where a checkpoint's tokenizer lies: beside the weights, where the user says, or in a repository."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from sat_models.errors import InputError
from sat_models.files import copy_file
from sat_models.processing.hubs import modelscope_download, uses_modelscope

logger = logging.getLogger(__name__)

TOKENIZER_FILE = "tokenizer.model"
DEFAULT_TOKENIZER = "lmsys/vicuna-7b-v1.5"
"""The tokenizer of the released CogVLM and CogAgent weights."""
COMPANIONS = ("added_tokens.json", "tokenizer_config.json")
"""Files beside a tokenizer that some families read: ids of special tokens, whether a text has a begin token."""


def find_tokenizer(
    weights_dir: str | os.PathLike[str] | None,
    local_tokenizer: str | os.PathLike[str] | None = None,
    *,
    default: str | None = None,
    names: Sequence[str] = (TOKENIZER_FILE,),
) -> Path:
    """Where the tokenizer of a checkpoint lies.

    Args:
        weights_dir: folder of the weights, a step folder in it, or a weights file; None when there is none.
        local_tokenizer: the user's choice, which wins: a file, a folder that holds `tokenizer.model`, or the id of a
            Hugging Face repository (`lmsys/vicuna-7b-v1.5`), taken from the local cache or downloaded.
        default: repository id to try when neither the user nor the weights bring one; None: do not look there.
        names: what the file may be called; the first is what a repository calls it.

    Returns:
        Path of a tokenizer file.

    Raises:
        InputError: nothing there; the message names the flag and the file to put where.
    """
    if local_tokenizer:
        return _named_tokenizer(str(local_tokenizer), names)
    folders: list[Path] = []
    if weights_dir is not None:
        start = Path(weights_dir).expanduser()
        start = start.parent if start.is_file() else start
        folders = [start, start.resolve().parent]
        for file in (folder / name for folder in folders for name in names):
            if file.is_file():
                return file
    if default:
        return _download(default, names[0])
    looked = f" (looked in {', '.join(map(str, folders))})" if folders else ""
    raise InputError(
        f"No {' or '.join(names)} lies beside the weights{looked}. Pass --local_tokenizer with a file, a folder or a "
        f"Hugging Face repository; the released CogVLM and CogAgent weights use {DEFAULT_TOKENIZER}."
    )


def copy_tokenizer(file: Path, folder: Path, name: str | None = None) -> None:
    """Copy a tokenizer's file, and its companions, where they are not there yet. Raises OSError.

    Args:
        name: of the file in `folder`; None: its own.
    """
    for source, copy in ((file, name or file.name), *((file.with_name(other), other) for other in COMPANIONS)):
        if source.is_file() and not (folder / copy).exists():
            copy_file(source, folder / copy)


def _named_tokenizer(name: str, names: Sequence[str]) -> Path:
    """The file that a user's `--local_tokenizer` means."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if found := [path / file for file in names if (path / file).is_file()]:
            return found[0]
        raise InputError(
            f"--local_tokenizer '{name}' is a folder without {' or '.join(names)}. Copy that file into it."
        )
    looks_like_id = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", name) and not name.endswith((".model", ".json"))
    if looks_like_id:
        return _download(name, names[0])
    raise InputError(
        f"--local_tokenizer '{name}' does not exist. Allowed: a tokenizer file, a folder that holds "
        f"{' or '.join(names)}, or a Hugging Face repository such as {DEFAULT_TOKENIZER}."
    )


def _download(repo_id: str, file: str) -> Path:
    """The tokenizer file of a repository, from the local cache where it is there (HF_HUB_OFFLINE is respected)."""
    remedy = (
        f"Copy {file} of https://huggingface.co/{repo_id} next to the weights, or pass its path: "
        f"--local_tokenizer FILE_OR_FOLDER."
    )
    if uses_modelscope():
        return _fetched(_of_modelscope(), repo_id, file, remedy)
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise InputError(
            f"Tokenizer '{repo_id}' is no local path, and downloading needs the package huggingface_hub "
            f"(pip install huggingface_hub). {remedy}"
        ) from error
    return _fetched(hf_hub_download, repo_id, file, remedy)


def _of_modelscope() -> Callable[[str, str], Path]:
    """Downloads a file of a repository. Raises MissingPackageError."""
    snapshot = modelscope_download()
    return lambda repo_id, file: Path(snapshot(repo_id, allow_patterns=[file])) / file


def _fetched(download: Callable[[str, str], str | Path], repo_id: str, file: str, remedy: str) -> Path:
    try:
        return Path(download(repo_id, file))
    except Exception as error:  # the hub raises many types: offline, no such repository, gated, network
        logger.debug("download of %s failed", repo_id, exc_info=True)
        raise InputError(
            f"Tokenizer '{repo_id}' is no local path and could not be downloaded ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}). {remedy}"
        ) from error
