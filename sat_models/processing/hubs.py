"""Which hub repositories are fetched from: Hugging Face's, or ModelScope by its own library.

`HF_ENDPOINT` names a mirror of Hugging Face's hub and is read by huggingface_hub itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from sat_models.errors import ConfigError, MissingPackageError

HUBS = ("huggingface", "modelscope")
_VARIABLE = "USE_MODELSCOPE"
_ANSWERS = {**dict.fromkeys(("1", "true", "yes", "on"), True), **dict.fromkeys(("0", "false", "no", "off", ""), False)}


def choose_hub(name: str | None) -> None:
    """Fetch from this hub from now on, in processes that are started, too; None leaves it to `USE_MODELSCOPE`.

    Raises:
        ConfigError: there is no such hub.
        MissingPackageError: without ModelScope's library.
    """
    if name is None:
        return
    if name not in HUBS:
        raise ConfigError(f"there is no hub '{name}'; allowed: {', '.join(HUBS)}")
    os.environ[_VARIABLE] = "1" if name == "modelscope" else "0"
    if name == "modelscope":
        modelscope_download()


def uses_modelscope() -> bool:
    """True if `USE_MODELSCOPE` says so. Raises ConfigError for a value that says neither yes nor no."""
    value = os.environ.get(_VARIABLE, "").strip().lower()
    if value not in _ANSWERS:
        raise ConfigError(f"{_VARIABLE} is {value!r}; allowed: {', '.join(filter(None, _ANSWERS))}, or leave it unset")
    return _ANSWERS[value]


def modelscope_download() -> Callable[..., Any]:
    """`snapshot_download` of ModelScope's library. Raises MissingPackageError."""
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise MissingPackageError("modelscope", "modelscope", "Fetching from ModelScope") from error
    return snapshot_download
