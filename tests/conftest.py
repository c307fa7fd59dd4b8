"""The quick tests run in several processes where pytest-xdist is installed: each file in one of them, as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MOST_PROCESSES = 4
"""Each may take 1.5 GB of memory."""


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share folders of quick tests out among the cores, unless `-n` says how.

    Files by name, slow tests (which start processes of their own), `--pdb` and what a test starts run in one process.
    """
    option, cores = config.option, len(os.sched_getaffinity(0))
    chosen = getattr(option, "numprocesses", 0) is not None or "PYTEST_XDIST_WORKER" in os.environ
    alone = option.markexpr != "not slow" or option.usepdb or option.collectonly
    if chosen or alone or cores < 2 or not all(Path(name).is_dir() for name in config.args):
        return
    option.numprocesses, option.dist = min(cores, MOST_PROCESSES), "loadfile"
    os.environ.setdefault("OMP_NUM_THREADS", str(cores // option.numprocesses))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Iterator[None]:
    """Halves of surrogate pairs, which tests of odd text print and log, cannot be sent from one process to another."""
    return _writable((yield))


def _writable(data: Any) -> Any:
    if isinstance(data, str):
        return data.encode("utf-8", "backslashreplace").decode()
    if isinstance(data, dict):
        return {_writable(key): _writable(value) for key, value in data.items()}
    return type(data)(map(_writable, data)) if isinstance(data, (list, tuple)) else data
