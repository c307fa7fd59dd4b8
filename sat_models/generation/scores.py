"""What a model's probabilities say of an answer. The one place that makes numbers of them: of each token, of the whole
answer, of a part of its text, of its boxes.

All are of the model's own distribution (temperature 1, nothing cut off, no penalty), whatever the token was drawn from.
The score of an answer is the probability of its tokens together, not their mean: of answers of one kind the joint
probability tells right ones from wrong ones better, or as well (docs/evaluation.md, "Confidence", has the figures). The
score of a box is the mean of the tokens of its numbers: there both order alike, and the mean can be read, while a dozen
digits of a right box have a thousandth together.

Legend: R rows, V vocabulary, K alternatives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from sat_models.errors import InputError
from sat_models.processing.box_forms import groups_in

LARGEST_TOP = 20
"""Most alternatives of a token that can be asked for, as in OpenAI's API."""

Alternative = tuple[int, float]
"""A token that might have stood in a place, and its log probability there."""


def check_top(top_logprobs: object) -> None:
    """Raises InputError for a number of alternatives that is none from 0 to `LARGEST_TOP`."""
    whole = isinstance(top_logprobs, Integral) and not isinstance(top_logprobs, bool)  # a number of numpy, too
    if not whole or not 0 <= top_logprobs <= LARGEST_TOP:
        raise InputError(
            f"top_logprobs is {top_logprobs!r}; it must be a whole number from 0 to {LARGEST_TOP}. 0 gives the chosen "
            "tokens alone."
        )


@dataclass(frozen=True)
class TokenScore:
    """One token of an answer.

    Attributes:
        token_id: which.
        logprob: the natural logarithm of its probability.
        top: the likeliest tokens in its place, the likeliest first; empty unless asked for.
    """

    token_id: int
    logprob: float
    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class StepScores:
    """The scores of one step, still on the device: of each row the chosen token's [R], and where they were asked for
    those of the K likeliest tokens [R, K] and their ids [R, K]. No row of a vocabulary is kept."""

    chosen: Tensor
    top: Tensor | None = None
    ids: Tensor | None = None


@torch.inference_mode()
def score_step(logits: Tensor, tokens: Tensor, rows: Sequence[int], top: int = 0) -> StepScores:
    """Scores of some rows, in fp32.

    Args:
        logits: [R, V].
        tokens: [R], chosen from them; below 0 where none could be.
        rows: which.
        top: alternatives of each.
    """
    if len(rows) < len(logits):
        logits, tokens = logits[list(rows)], tokens[list(rows)]
    logits = logits.float()
    total = logits.logsumexp(dim=1, keepdim=True)
    chosen = (logits.gather(1, tokens.clamp(min=0)[:, None]) - total).squeeze(1)
    if not top:
        return StepScores(chosen)
    values, ids = logits.topk(min(top, logits.shape[1]), dim=1)
    return StepScores(chosen, values - total, ids)


class RowScores:
    """The scores of one answer's tokens, step by step.

    Args:
        top: alternatives of each token.
    """

    def __init__(self, top: int = 0) -> None:
        self.top = top
        self._steps: list[tuple[StepScores, int]] = []

    def note(self, step: StepScores, row: int) -> None:
        """One more token: where it stands in the scores of its step."""
        self._steps.append((step, row))

    def read(self, ids: Sequence[int], first: int = 0) -> list[TokenScore]:
        """Scores of the answer's tokens from number `first` on; waits for the device.

        Args:
            ids: all tokens of the answer.
        """
        steps = self._steps[first : len(ids)]
        if not steps:
            return []
        logprobs = torch.stack([step.chosen[row] for step, row in steps]).tolist()
        tops = [self._alternatives(step, row) for step, row in steps]
        return [TokenScore(*each) for each in zip(ids[first:], logprobs, tops, strict=True)]

    def _alternatives(self, step: StepScores, row: int) -> tuple[Alternative, ...]:
        if not self.top:
            return ()
        ids, values = step.ids[row, : self.top].tolist(), step.top[row, : self.top].tolist()
        return tuple(zip(ids, values, strict=True))


def probability(logprobs: Iterable[float]) -> float:
    """The probability of tokens together, from 0 to 1; 0 of none: who says nothing is sure of nothing."""
    given = list(logprobs)
    return min(1.0, math.exp(math.fsum(given))) if given else 0.0


def mean_probability(logprobs: Sequence[float]) -> float:
    """The geometric mean of the probabilities of tokens, from 0 to 1; 0 of none."""
    return probability([math.fsum(logprobs) / len(logprobs)]) if logprobs else 0.0


def within(ends: Sequence[int], start: int, end: int) -> list[int]:
    """Numbers of the tokens of which a character lies between two places of a text.

    Args:
        ends: for each token, the characters of the text that it and those before it made.
        start, end: places in the text; `end` is the first behind.
    """
    begins = [0, *ends[:-1]]
    return [number for number, (a, z) in enumerate(zip(begins, ends, strict=True)) if a < end and z > start and a < z]


def box_places(text: str) -> list[tuple[int, int]]:
    """Where the numbers of each box stand in a text, in the order of `parse_boxes`, which leaves out the same ones."""
    return [place for group in groups_in(text) for place in group.places if place is not None]
