"""Scores of text answers. Pure functions: text in, numbers or truth values out.

Boxes are `[x0, y0, x1, y1]` in 0-999, written `[[x0,y0,x1,y1]]`; several boxes of one phrase are separated by `;`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from sat_models.evaluation.vqa_answers import normalise_vqa
from sat_models.processing.boxes import parse_boxes, strip_boxes

Box = tuple[int, int, int, int]

_SEPARATORS = re.compile(r"[,;.]|\band\b")
_ARTICLE = re.compile(r"^(?:a|an|the|one)\s+")


def normalise(text: str) -> str:
    """Lower case, single spaces, no punctuation at the end."""
    return " ".join(text.lower().split()).rstrip(" .!?")


def exact_match(answer: str, expected: str) -> bool:
    """True if two answers are the same once normalised."""
    return normalise(answer) == normalise(expected)


def vqa_soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """Accuracy of the VQA challenge: how many of the people asked would agree, from 0 to 1.

    The mean over all choices of one reference to leave out of `min(1, equal ones among the others / 3)`, on answers as
    `normalise_vqa` writes them. With a single reference it is 1 or 0.

    Args:
        answer: what the model said.
        references: people's answers, usually ten.

    Raises:
        ValueError: no references.
    """
    if not references:
        raise ValueError("vqa_soft_accuracy needs at least one reference answer; got none.")
    said = normalise_vqa(answer)
    equal = [normalise_vqa(reference) == said for reference in references]
    if len(equal) == 1:
        return float(equal[0])
    matches = sum(equal)
    return sum(min(1.0, (matches - same) / 3) for same in equal) / len(equal)


def anls(answer: str, references: Sequence[str], *, threshold: float = 0.5) -> float:
    """Normalised Levenshtein similarity to the nearest reference, 0 where it is below `threshold`.

    The measure of ST-VQA and DocVQA (arXiv 1905.13648, section 4): case and spaces do not count. Its mean over
    questions is ANLS.

    Raises:
        ValueError: no references.
    """
    if not references:
        raise ValueError("anls needs at least one reference answer; got none.")
    said = " ".join(answer.lower().split())
    best = 0.0
    for reference in references:
        true = " ".join(reference.lower().split())
        longest = max(len(said), len(true))
        best = max(best, 1 - edit_distance(said, true) / longest if longest else 1.0)
    return best if best >= threshold else 0.0


def edit_distance(a: str, b: str) -> int:
    """Fewest insertions, deletions and replacements of characters that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, char in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (char != other))
    return row[-1]


def yes_or_no(answer: str) -> str:
    """The meaning of an answer to a yes-no question: "no" where its first sentence holds "no" or "not", else "yes".

    This is the rule of POPE's own script (arXiv 2305.10355).
    """
    words = re.split(r"[^\w']+", answer.partition(".")[0].lower())
    return "no" if "no" in words or "not" in words else "yes"


def pope_scores(answers: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """POPE: accuracy, precision, recall and F1 of the answer "yes", and the share of "yes".

    Args:
        answers: what the model said.
        labels: "yes" or "no" for each.

    Raises:
        ValueError: no answers, another number of labels, or a label that is neither yes nor no.
    """
    if not answers or len(answers) != len(labels) or not set(labels) <= {"yes", "no"}:
        raise ValueError(f"pope_scores got {len(answers)} answers and {len(labels)} labels; one yes or no for each.")
    pairs = Counter((yes_or_no(answer), label) for answer, label in zip(answers, labels, strict=True))
    said_yes = pairs["yes", "yes"] + pairs["yes", "no"]
    precision = pairs["yes", "yes"] / max(1, said_yes)
    recall = pairs["yes", "yes"] / max(1, pairs["yes", "yes"] + pairs["no", "yes"])
    return {
        "accuracy": (pairs["yes", "yes"] + pairs["no", "no"]) / len(answers),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "yes_share": said_yes / len(answers),
    }


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes, 0 where one is empty or reversed."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def box_iou(answer: str, box: Sequence[float]) -> float:
    """IoU of the first box of an answer with the true one; 0 without a box."""
    found = grounded_phrases(answer)
    return iou(found[0][1], box) if found else 0.0


def listed_names(text: str) -> list[str]:
    """The things that a sentence lists: `A red circle and a blue square.` -> `red circle`, `blue square`; no boxes."""
    parts = _SEPARATORS.split(strip_boxes(text).lower())
    names = (_ARTICLE.sub("", " ".join(part.split())) for part in parts)
    return [name for name in names if name]


def grounded_phrases(text: str) -> list[tuple[str, Box]]:
    """Every box of a text in order, in 0-999, with the name it belongs to (no article; "" where there is none)."""
    found = parse_boxes(text, 1000, 1000, use_spacy=False)
    return [((listed_names(box.phrase) or [""])[-1], box.normalized) for box in found]


def bare_phrase(phrase: str) -> str:
    """A phrase in lower case without its article and closing punctuation, to be compared."""
    return _ARTICLE.sub("", normalise(phrase))


def matched(
    said: Sequence[tuple[str, Sequence[float]]],
    true: Sequence[tuple[str, Sequence[float]]],
    *,
    with_phrase: bool,
    threshold: float = 0.5,
) -> int:
    """How many of the true (phrase, box) pairs are found, each by a pair of its own; the largest overlaps are paired
    first.

    Args:
        with_phrase: a pair must have the same phrase, too.
        threshold: IoU from which boxes are the same.
    """
    overlaps = sorted(
        (
            (iou(said_box, true_box), i, j)
            for i, (phrase, said_box) in enumerate(said)
            for j, (name, true_box) in enumerate(true)
            if not with_phrase or phrase == name
        ),
        key=lambda found: -found[0],
    )
    taken_said, taken_true = set(), set()
    for overlap, i, j in overlaps:
        if overlap >= threshold and i not in taken_said and j not in taken_true:
            taken_said.add(i)
            taken_true.add(j)
    return len(taken_true)


def caption_scores(answer: str, names: Iterable[str]) -> dict[str, bool]:
    """Compares what a caption enumerates with what is there.

    Returns:
        `every_object_named`; `nothing_invented` (a name that is not there, or one that is said more often than it is
        there, is invented); `same_things` = both.
    """
    said, there = Counter(listed_names(answer)), Counter(normalise(name) for name in names)
    named, invented = not there - said, bool(said - there)
    return {"same_things": named and not invented, "every_object_named": named, "nothing_invented": not invented}


def means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of the scores of several answers (at least one); summed exactly, so that their order does not matter."""
    return {name: math.fsum(one[name] for one in scores) / len(scores) for name in scores[0]}
