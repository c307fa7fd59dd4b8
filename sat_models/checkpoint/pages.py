"""Memory-mapped weights: giving their pages back, and how much memory this process holds."""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from torch import Tensor

_PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4: unlike MADV_DONTNEED it loses nothing if a page is no file's
_STATUS = Path("/proc/self/status")


@functools.cache
def _advise() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def release_pages(tensor: Tensor) -> None:
    """Let the whole pages behind a memory-mapped CPU tensor leave this process; reading it again brings them back.

    A hint: where the system does not know it, nothing happens.
    """
    advise = _advise()
    if advise is None or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:
        advise(first, last - first, _PAGEOUT)


def anonymous_bytes() -> int:
    """Memory of this process behind which no file stands: what it really takes from the machine. Linux only."""
    lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


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
