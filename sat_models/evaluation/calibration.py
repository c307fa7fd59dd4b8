"""Whether a model's scores tell its right answers from its wrong ones: pure functions of scores and truth values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from sat_models.errors import InputError

SURE = 0.7
"""The share of answers, the surest first, whose accuracy is reported."""
SURE_NAME = f"surest_{SURE:.0%}"
BINS = 10
Judged = tuple[float, bool]
"""A score from 0 to 1, and whether the answer was right."""


def judged(entries: Sequence[Mapping[str, Any]]) -> list[Judged]:
    """Of predictions: `score` and `right` of those that have both."""
    return [(entry["score"], entry["right"] >= 0.5) for entry in entries if "score" in entry]


def judged_boxes(entries: Sequence[Mapping[str, Any]]) -> list[Judged]:
    """Of predictions: every box that was written where true ones are known."""
    return [
        (score, bool(right))
        for entry in entries
        for score, right in zip(entry.get("box_scores", ()), entry.get("boxes_right", ()), strict=False)
    ]


def calibrations(groups: Mapping[str, Sequence[Mapping[str, Any]]], *, accuracy: float) -> dict[str, dict[str, Any]]:
    """`calibration` of the predictions of each kind, and of the boxes that they hold where it is known what is right.

    Returns:
        By the name of the group, and `NAME, boxes`; kinds without a score are left out.
    """
    return {name: calibration(answers, accuracy=accuracy) for name, answers in judged_kinds(groups).items()}


def judged_kinds(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[Judged]]:
    """Scores and truth by the names of `calibrations`."""
    kinds = {}
    for name, entries in groups.items():
        kinds |= {name: judged(entries), f"{name}, boxes": judged_boxes(entries)}
    return {name: answers for name, answers in kinds.items() if answers}


def calibration(answers: Sequence[Judged], *, accuracy: float = 0.95) -> dict[str, Any]:
    """Figures of some answers of one kind.

    Args:
        answers: at least one.
        accuracy: share of right ones that somebody wants, above 0, to 1.

    Returns:
        `count`; `accuracy` of all; `auroc`, the probability that a right answer has a higher score than a wrong one
        (equal scores count half), None where all are right or all wrong; `wanted`, the accuracy asked for;
        `coverage`, the largest share of the surest answers that are right so often; `threshold`, the least score of
        those, None where none are; `surest_70%`, the accuracy of the surest 70 percent.

    Raises:
        InputError: an `accuracy` out of its range.
    """
    check_accuracy(accuracy)
    ranked = sorted(answers, key=lambda answer: -answer[0])
    coverage, threshold = _coverage(ranked, accuracy)
    surest = ranked[: max(1, round(SURE * len(ranked)))]
    return {
        "count": len(ranked),
        "accuracy": _share(ranked),
        "auroc": auroc(ranked),
        "wanted": accuracy,
        "coverage": coverage,
        "threshold": threshold,
        SURE_NAME: _share(surest),
    }


def check_accuracy(accuracy: float) -> None:
    """Raises InputError for an accuracy that no answers can have, or all have."""
    if not 0 < accuracy <= 1:
        raise InputError(f"accuracy is {accuracy}; it must be above 0, to 1. 0.95 is usual.")


def auroc(answers: Sequence[Judged]) -> float | None:
    """The area under the ROC curve: see `calibration`."""
    right = sum(is_right for _, is_right in answers)
    wrong = len(answers) - right
    if not right or not wrong:
        return None
    above, seen_wrong = 0.0, 0
    for _, group in groupby(sorted(answers), key=lambda answer: answer[0]):  # from the least score on
        same = [is_right for _, is_right in group]
        hits, misses = sum(same), len(same) - sum(same)
        above += hits * (seen_wrong + misses / 2)
        seen_wrong += misses
    return above / (right * wrong)


def _coverage(ranked: Sequence[Judged], accuracy: float) -> tuple[float, float | None]:
    """Share and least score of the most answers, the surest first, of which so many are right. Answers of one score
    are taken together or not at all: a threshold cannot part them."""
    best, threshold, seen, right = 0, None, 0, 0
    for score, group in groupby(ranked, key=lambda answer: answer[0]):
        same = [is_right for _, is_right in group]
        seen, right = seen + len(same), right + sum(same)
        if right >= accuracy * seen - 1e-9:
            best, threshold = seen, score
    return best / len(ranked), threshold


def reliability(answers: Sequence[Judged], bins: int = BINS) -> list[tuple[float, float, int]]:
    """Answers in `bins` of equal numbers, from the least sure to the surest: (mean score, share right, how many).

    Equal numbers and not equal widths: joint probabilities of long answers crowd at 0.
    """
    ranked = sorted(answers, key=lambda answer: answer[0])
    edges = [len(ranked) * number // bins for number in range(bins + 1)]
    parts = [ranked[start:end] for start, end in pairwise(edges) if end > start]
    return [(math.fsum(score for score, _ in part) / len(part), _share(part), len(part)) for part in parts]


def _share(answers: Sequence[Judged]) -> float:
    return sum(is_right for _, is_right in answers) / len(answers)
