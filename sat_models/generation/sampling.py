"""From the logits of one position to the next token.

Legend: B batch, V vocabulary, T tokens generated so far.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sat_models.errors import InputError

_TINY = torch.finfo(torch.float32).tiny
NO_TOKEN = -1
"""The result of `sample` for a row whose logits are not numbers: no token id, so nobody can mistake it for one."""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How to choose tokens and when to stop. Checked when made.

    Attributes:
        max_new_tokens: most tokens to generate; None: as many as `max_length` leaves.
        max_length: most tokens in all, prompt and image included; None: the engine's own limit.
        temperature: 0 takes the likeliest token; larger is more random.
        top_p: keep the likeliest tokens whose probabilities add up to this; 1 keeps all, 0 the likeliest alone.
        top_k: keep this many of the likeliest tokens, before `top_p`; 0 keeps all, 1 is greedy.
        seed: of a random generator of its own; None draws a fresh one.
        repetition_penalty: above 1 makes tokens that this answer already holds less likely (the prompt does not
            count: a question that offers "red or blue" must not forbid both).

    Raises:
        InputError: a value out of range.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "max_length", "top_k", "seed", "temperature", "top_p", "repetition_penalty"):
            if isinstance(getattr(self, name), np.generic):  # a number of numpy is that number
                object.__setattr__(self, name, getattr(self, name).item())
        for name in ("max_new_tokens", "max_length"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 1, "Leave it out for the model's own limit.")
        _check_int("top_k", self.top_k, 0, "0 keeps all tokens, 1 is greedy.")
        if self.seed is not None:
            _check_int("seed", self.seed, -(2**63), "Leave it out for a fresh one.", largest=2**63 - 1)
        _check_number("temperature", self.temperature, 0.0, math.inf, "0 is greedy, 0.8 is usual.")
        _check_number("top_p", self.top_p, 0.0, 1.0, "1 keeps all tokens, 0.4 is usual.")
        _check_number("repetition_penalty", self.repetition_penalty, 1e-3, 1e3, "1 is none, 1.1 is usual.")

    @property
    def greedy(self) -> bool:
        """True if the likeliest token is taken each time, so that no randomness is involved."""
        return self.temperature == 0 or self.top_k == 1 or self.top_p == 0

    def make_generator(self, device: torch.device | str) -> torch.Generator | None:
        """A generator of its own on `device`, seeded; None when greedy. The global one is left alone."""
        if self.greedy:
            return None
        generator = torch.Generator(device=device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def sample(
    logits_BV: Tensor, options: SamplingOptions, generator: torch.Generator | None = None, history: Tensor | None = None
) -> Tensor:
    """The next token of each row, chosen on the device of the logits.

    Args:
        logits_BV: [B, V], any float type; -inf means never.
        generator: from `options.make_generator`.
        history: [B, T] ids generated so far, for the repetition penalty.

    Returns:
        [B] long; `NO_TOKEN` in a row whose logits hold NaN or +inf, or are all -inf.
    """
    logits = logits_BV.float()
    best, first = logits.max(dim=-1, keepdim=True)  # a NaN counts as the largest; on a CPU half the time of `argmax`
    usable = best.abs() < math.inf
    penalised = options.repetition_penalty != 1.0 and history is not None and history.shape[1] > 0
    if options.greedy and not penalised:
        return torch.where(usable, first, NO_TOKEN).squeeze(-1)
    logits = torch.where(usable, logits, 0.0)
    if penalised:
        logits = _penalise(logits, history, options.repetition_penalty)
    token = logits.argmax(dim=-1, keepdim=True) if options.greedy else _draw(logits, options, generator)
    return torch.where(usable, token, NO_TOKEN).squeeze(-1)


def _penalise(logits: Tensor, history: Tensor, penalty: float) -> Tensor:
    """Lower the logits of ids in `history` (CTRL, arXiv 1909.05858, section 4.1)."""
    seen = logits.gather(1, history)
    return logits.scatter(1, history, torch.where(seen > 0, seen / penalty, seen * penalty))


def _draw(logits: Tensor, options: SamplingOptions, generator: torch.Generator | None) -> Tensor:
    """[B, V] finite or -inf -> [B, 1]: temperature, then top_k, then top_p."""
    keep = min(options.top_k, logits.shape[-1]) or logits.shape[-1]
    values, ids = logits.topk(keep, dim=-1)  # in falling order
    scaled = (values - values[:, :1]) / max(options.temperature, 1e-6)  # the largest is 0: nothing overflows
    probabilities = scaled.softmax(dim=-1)
    if options.top_p < 1.0:
        before = probabilities.cumsum(dim=-1) - probabilities
        before[:, 0] = -1.0  # the likeliest always stays
        probabilities = probabilities.masked_fill(before >= options.top_p, 0.0)
    # The largest of p / e with e exponential is a draw from p (a race of exponential clocks). `torch.multinomial` does
    # the same, but reads its input on the host first, to check it.
    race = torch.empty_like(probabilities).exponential_(generator=generator).clamp_min_(_TINY)
    return ids.gather(1, (probabilities / race).argmax(dim=-1, keepdim=True))


def _check_int(name: str, value: object, least: int, remedy: str, *, largest: int = 2**31) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
        raise InputError(f"{name} is {value!r}; it must be a whole number from {least} to {largest}. {remedy}")


def _check_number(name: str, value: object, least: float, largest: float, remedy: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not least <= value <= largest:
        allowed = f"at least {least:g}" if largest == math.inf else f"from {least:g} to {largest:g}"
        raise InputError(f"{name} is {value!r}; it must be a number {allowed}. {remedy}")
