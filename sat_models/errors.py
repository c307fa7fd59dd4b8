"""Errors meant for users.

Each message says what was given, what is allowed and what to do. Scripts turn every `ZooError` into one line on
stderr and exit code 2 (`run_script`); anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import NoReturn


class ZooError(ValueError):
    """Base of all errors caused by what the user gave (paths, names, flags, pictures, files)."""


class ConfigError(ZooError):
    """A model config or a flag that is malformed or contradicts the checkpoint."""


class InputError(ZooError):
    """A picture, question or history that cannot be used."""


class CheckpointError(ZooError):
    """Weights that are missing, damaged, or do not fit the model."""


class UnknownNameError(ZooError):
    """A name that is not registered; the message lists near matches."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        listing = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}."
        super().__init__(" ".join(part for part in (f"Unknown {kind} '{name}'.", listing, hint) if part))


class MissingPackageError(ZooError, ImportError):
    """An optional package is absent; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f'Install it with: pip install "cogvlm-sat-zoo[{extra}]"  (or: pip install {package})'
        )


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run a command to its exit code; what the user can mend is one line on stderr and 2, an interruption 130."""
    try:
        sys.exit(main())
    except ZooError as error:
        complain(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def complain(error: Exception) -> None:
    """One line on stderr.

    Processes of one job mostly fail alike and their launcher ends all with the first, so those behind wait a little:
    what they still live to say is then the real reason.
    """
    if int(os.environ.get("RANK", "0")):
        time.sleep(3)
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
