"""Small parts of the training loop: learning rate, speed, the signal to stop, random states, memory in use."""

from __future__ import annotations

import logging
import math
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sat_models.training.settings import FinetuneSettings

logger = logging.getLogger(__name__)


def learning_rate(settings: FinetuneSettings, step: int) -> float:
    """The rate of a step, counted from 0: a linear rise over the warm-up, then `settings.schedule`.

    `cosine` and `linear` end at `min_learning_rate`, one step after the last; `constant` stays.
    """
    highest, lowest = settings.learning_rate, settings.min_learning_rate
    rising = math.ceil(settings.warmup * settings.train_iters)
    if step < rising:
        return highest * (step + 1) / rising
    if settings.schedule == "constant":
        return highest
    done = min(1.0, (step - rising) / (settings.train_iters - rising))
    share = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return lowest + (highest - lowest) * share


class Meter:
    """Means since the last report and tokens per second."""

    def __init__(self) -> None:
        self._values: list[dict[str, float]] = []
        self._since, self.speed = time.monotonic(), 0.0

    def add(self, values: dict[str, float], tokens: int) -> None:
        """One step: its loss and what else is reported, always of the same names."""
        self._values.append(values)
        now = time.monotonic()
        latest = tokens / max(now - self._since, 1e-9)
        self.speed = latest if not self.speed else 0.9 * self.speed + 0.1 * latest
        self._since = now

    def means(self) -> dict[str, float]:
        """Of all values since the last call."""
        count, names = len(self._values), self._values[0]
        means = {name: sum(values[name] for values in self._values) / count for name in names}
        self._values.clear()
        return means


class StopRequest:
    """True if SIGTERM came. The first one asks for an end after the step at hand, a second one ends the process."""

    def __init__(self) -> None:
        self.came = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signal inside the block; the former handler is back afterwards."""

        def note(number: int, frame: Any) -> None:
            logger.warning("SIGTERM: saving after this step, then stopping")
            self.came = True
            signal.signal(signal.SIGTERM, before)

        try:
            before = signal.signal(signal.SIGTERM, note)
        except ValueError:  # not the main thread: signals do not come here
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def random_state() -> dict[str, Any]:
    """Python's and torch's, of this process."""
    state = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`."""
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def memory_in_use() -> str:
    """Memory of this process for the progress bar: of the GPU where it uses one, else resident."""
    if torch.cuda.is_initialized():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f}GB"
    with open("/proc/self/statm", encoding="ascii") as file:
        return f"{int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f}GB"
