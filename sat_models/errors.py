"""Errors meant for users.

Each message says what was given, what is allowed and what to do. Scripts turn every `ZooError` into one line on
stderr and exit code 2 (`run_script`); anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import atexit
import contextlib
import difflib
import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import NoReturn

from sat_models.text import printable


class ZooError(ValueError):
    """Base of all errors caused by what the user gave (paths, names, flags, pictures, files).

    Args:
        message: what was given, what is allowed, what to do; written as it is wherever text can be written.
        hint: what else helps whoever started the program, such as a flag of its command line.

    Attributes:
        public: the message without the hint, for those who ask over a network and have no command line.
    """

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        self.public = printable(message)
        super().__init__(" ".join(filter(None, (self.public, printable(hint)))))


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
        shown = name if len(name) <= 60 else name[:60] + "…"
        super().__init__(f"Unknown {kind} '{shown}'. {listing}", hint=hint)


class UnknownArgumentError(InputError, TypeError):
    """A keyword argument that a function does not take; the message lists near matches."""


def refuse_unknown(given: Iterable[str], function: Callable[..., object], known: Iterable[str] = ()) -> None:
    """Raises UnknownArgumentError for keyword arguments that a function does not have.

    Args:
        given: those that it was called with and has no name for.
        known: names that it has besides those in its signature.
    """
    if unknown := sorted(given):
        plain = (name for name, each in inspect.signature(function).parameters.items() if each.kind != each.VAR_KEYWORD)
        names = [name for name in (*plain, *known) if name != "self"]
        near = difflib.get_close_matches(unknown[0], names, n=3, cutoff=0.5)
        listing = f"Did you mean {' or '.join(near)}?" if near else f"It takes {', '.join(names)}."
        raise UnknownArgumentError(f"{function.__name__} was given '{unknown[0]}', which it does not take. {listing}")


class MissingPackageError(ZooError, ImportError):
    """An optional package is absent; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f'Install it with: pip install "cogvlm-sat-zoo[{extra}]"  (or: pip install {package})'
        )


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run a command to its exit code; what the user can mend is one line on stderr and 2, an interruption 130.

    A process of a torchrun job then ends at once, without the interpreter's own teardown: by then gloo's threads may
    still drop tensors, ask a vanishing interpreter for its lock, and abort a job that has done its work
    (https://github.com/pytorch/pytorch/issues/190489). What registered to run at exit has run before.
    """
    code: list[int] = [1]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit.register(_end_at_once, code)  # first come, last served
    try:
        code[0] = main() or 0
    except ZooError as error:
        complain(error)
        code[0] = 2
    except OSError as error:
        if error.filename is None:
            raise
        complain(InputError(f"'{error.filename}' cannot be read or written: {error.strerror}. Name another place."))
        code[0] = 2
    except KeyboardInterrupt:
        code[0] = 130
    except SystemExit as stop:
        code[0] = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        raise
    sys.exit(code[0])


def _end_at_once(code: list[int]) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # whoever read it may be gone
            stream.flush()
    os._exit(code[0])


def complain(error: Exception) -> None:
    """One line on stderr; under torchrun, which says much about it, again behind that.

    Processes of one job mostly fail alike and their launcher ends all with the first, so those behind wait a little:
    what they still live to say is then the real reason.
    """
    if int(os.environ.get("RANK", "0")):
        time.sleep(3)
    line = f"error: {' '.join(str(error).split())}"
    print(line, file=sys.stderr, flush=True)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _say_last(line)


_LAST_WORD = """
import os, select, sys
launcher = select.poll()
launcher.register(os.pidfd_open(int(sys.argv[1])), select.POLLIN)
launcher.poll(60_000)
sys.stderr.write(sys.argv[2] + "\\n")
"""


def _say_last(line: str) -> None:
    """The line again, once torchrun has ended: it writes forty lines of its own about a process that fails."""
    with contextlib.suppress(OSError):
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAST_WORD, str(os.getppid()), line],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
