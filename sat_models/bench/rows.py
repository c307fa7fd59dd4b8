"""The measurements of a benchmark, and the lines that it gives."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from sat_models.errors import InputError

logger = logging.getLogger(__name__)

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
USUAL_CASES = ("vision", "prefill", "decode", "batch", "quant", "train")
CASES = (*USUAL_CASES, "profile")


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """The measurements of one run.

    Attributes:
        cases: of `CASES`.
        contexts: tokens in the cache at which decoding is measured, with a picture where it fits.
        text_contexts: the same without a picture.
        batches: rows decoded together.
        new_tokens: steps of each measurement of decoding.
        repeats: how often each measurement is taken.
        stock: also run the stock path.
        stock_tokens: its steps, which are slow.
        bits: weights of the quantised decode.
        quant: bits of the linears in all other cases; None: they are in the model's dtype.
        kernels: what `Engine` takes by this name; decoding is measured with each beside the usual step.
        train: "full" (every parameter, AdamW) or "lora" (rank 8, for models whose optimizer would not fit).
        train_batch: samples of a training step.
        clock: "wall", or "cpu": the processor time of this process, which on a machine that is busy with other things
            says what the wall clock would say of an idle one (with one thread; not for GPUs).
        seconds: no further case is begun after this time; None: all are.
    """

    cases: tuple[str, ...] = USUAL_CASES
    contexts: tuple[int, ...] = (1300,)
    text_contexts: tuple[int, ...] = (300,)
    batches: tuple[int, ...] = (1, 4, 16)
    new_tokens: int = 32
    repeats: int = 3
    stock: bool = True
    stock_tokens: int = 16
    bits: tuple[int, ...] = (8, 4)
    quant: int | None = None
    kernels: tuple[str, ...] = ()
    train: str = "full"
    train_batch: int = 2
    clock: str = "wall"
    seconds: float | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.cases) - set(CASES):
            raise InputError(f"unknown case {', '.join(sorted(unknown))}; allowed: {', '.join(CASES)}")
        if self.train not in ("full", "lora"):
            raise InputError(f"train is '{self.train}'; allowed: full, lora")
        if self.quant is not None and self.stock:
            raise InputError(f"quant is {self.quant}, but SAT's own way knows full precision only; add --no-stock")
        if self.quant is not None and "train" in self.cases:
            raise InputError(f"quant is {self.quant}, and such weights do not train; choose --cases without train")
        if self.clock not in CLOCKS:
            raise InputError(f"clock is '{self.clock}'; allowed: {', '.join(CLOCKS)}")
        if not (self.contexts or self.text_contexts or set(self.cases) <= {"vision"}):
            raise InputError("contexts and text_contexts are both empty; without a prompt only vision can be measured")
        sizes = (self.new_tokens, self.repeats, self.stock_tokens, self.train_batch, *self.batches)
        if min(sizes) < 1 or min((*self.contexts, *self.text_contexts), default=1) < 1:
            raise InputError("contexts, batches, token counts and repeats must be at least 1")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        case, what: what was measured.
        value, unit: ours; None if it failed, and then `note` says why.
        stock: the stock path's figure in the same unit.
        speedup: how many times faster ours is.
        floor: the best that this machine's measured bandwidth and arithmetic allow.
        share: of the floor that is reached, 0 to 1.
        memory: peak bytes while it ran, on the GPU or of this process; None where the system does not say.
    """

    case: str
    what: str
    value: float | None
    unit: str
    stock: float | None = None
    speedup: float | None = None
    floor: float | None = None
    share: float | None = None
    memory: int | None = None
    note: str = ""


def make_row(
    case: str, what: str, value: float, unit: str, stock: float = 0.0, *, floor: float = 0.0,
    peaks: Sequence[int] = (), note: str = "",
) -> Row:  # fmt: skip
    """A line with its ratios; 0 stands for a figure that there is not. Less time is better."""
    more_is_better = unit not in ("ms", "us")
    speedup = (value / stock if more_is_better else stock / value) if stock else None
    share = (value / floor if more_is_better else floor / value) if floor else None
    return Row(case, what, value, unit, stock or None, speedup, floor or None, share, max(peaks, default=None), note)


def failed_row(case: str, what: str, error: Exception) -> Row:
    """A line that says why there is no figure, and the whole of it in the log."""
    logger.error("case %s failed", case, exc_info=error)
    return Row(case, what, None, "", note=f"{type(error).__name__}: {str(error)[:200]}")


def steps_of(times: Sequence[float]) -> list[float]:
    """Seconds of each decode step, from the times of the tokens."""
    return [after - before for before, after in itertools.pairwise(times)]


def milliseconds(seconds: Sequence[float]) -> float:
    return 1e3 * statistics.median(seconds) if seconds else 0.0


def rate(seconds: Sequence[float]) -> float:
    """Per second, from the median of the steps."""
    return 1 / statistics.median(seconds) if seconds else 0.0
