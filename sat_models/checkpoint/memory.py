"""Giving memory back, of mapped files and of what was freed, and how much of it this process holds."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

_PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4: unlike MADV_DONTNEED it loses nothing if a page is no file's
_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")


@functools.cache
def _c_function(name: str, *arguments: type) -> Callable[..., int] | None:
    """A function of the C library, where this system has it (madvise: Linux; malloc_trim: glibc)."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None)[name]
    except (OSError, AttributeError):
        return None
    function.argtypes = arguments
    return function


def release_pages(tensor: Tensor) -> None:
    """Let the whole pages behind a memory-mapped CPU tensor leave this process; reading it again brings them back.

    A hint: where the system does not know it, nothing happens.
    """
    advise = _c_function("madvise", ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if advise is None or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        advise(first, last - first, _PAGEOUT)


def release_freed() -> None:
    """Let memory leave this process that was freed, but that malloc keeps between blocks in use; about a millisecond.

    Megabytes that come and go while others are made to stay would otherwise leave holes of some hundred megabytes.
    """
    trim = _c_function("malloc_trim", ctypes.c_size_t)
    if trim is not None:
        trim(0)


def process_bytes(name: str) -> int | None:
    """A number of Linux's /proc/self/status, VmRSS say; None on another system."""
    if not _STATUS.exists():
        return None
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def forget_peak() -> None:
    """Let the peak that `process_bytes("VmHWM")` tells begin anew here. Linux only; nothing happens elsewhere."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def anonymous_bytes() -> int:
    """Memory of this process behind which no file stands: what it really takes from the machine. Linux only."""
    found = process_bytes("RssAnon")
    assert found is not None, "no /proc/self/status"
    return found


class AnonymousPeak:
    """Inside a `with` block: the largest growth of `anonymous_bytes`, looked at every few milliseconds.

    Attributes:
        bytes: the growth, above the level at the start.
    """

    def __init__(self, interval: float = 0.005) -> None:
        self.bytes, self._interval = 0, interval
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._start = anonymous_bytes()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            self._look()

    def _look(self) -> None:
        self.bytes = max(self.bytes, anonymous_bytes() - self._start)


def free_bytes(device: torch.device) -> int | None:
    """Memory that a device still has; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not _MEMORY.exists():
        return None
    lines = (line.partition(":") for line in _MEMORY.read_text(encoding="utf-8").splitlines())
    found = next((value.split()[0] for name, _, value in lines if name == "MemAvailable"), None)
    return int(found) * 1024 if found is not None else None
