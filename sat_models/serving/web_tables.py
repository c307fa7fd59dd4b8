"""The tables of the web page below an answer: its boxes, and what else the model's family says in a form of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sat_models.generation.answer import GenerationResult
from sat_models.processing.boxes import Box
from sat_models.text import markdown_table
from sat_models.zoo.vlm import Reading


def tables(found: Reading, words: Mapping[str, str], answer: GenerationResult) -> str:
    """Markdown tables: what was found, with the probability of each box, and that of the whole answer below.

    Args:
        answer: what `found` was read from; without `logprobs` no probability is shown.
        words: of the page's language; a part is shown under the word of its name (`agent.operation.action`), else
            under that name.
    """
    whole = "" if answer.score is None else f"{words['score']}: {_share(answer.score)}"
    parts = [_boxes(found.boxes, answer.box_scores, words), _parts(found.parts, words), whole]
    return "\n\n".join(part for part in parts if part)


def _boxes(boxes: Sequence[Box], scores: Sequence[float] | None, words: Mapping[str, str]) -> str:
    """The boxes in pixels, with a column of their probabilities where these are known."""
    if not boxes:
        return ""
    names = [words["table"], "x1", "y1", "x2", "y2"]
    rows = [[_cell(box.phrase), *map(str, box.rounded())] for box in boxes]
    if scores is not None:
        names.append(words["box_score"])
        rows = [[*row, _share(score)] for row, score in zip(rows, scores, strict=True)]
    return markdown_table((names, ("---", *["---:"] * (len(names) - 1)), *rows))


def _share(score: float) -> str:
    """A probability in percent, with two digits that say something."""
    return f"{100 * score:.2g} %" if score < 0.995 else f"{100 * score:.3g} %"


def _parts(parts: Mapping[str, Any], words: Mapping[str, str]) -> str:
    rows = [(_cell(words.get(name, name)), value) for name, value in _lines(parts)]
    return markdown_table(((words["part"], words["value"]), ("---", "---"), *rows)) if rows else ""


def _lines(parts: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """Name and text of every part that says something; boxes have a table of their own."""
    for key, value in parts.items():
        name = f"{within}{key}"
        if isinstance(value, Mapping):
            yield from _lines(value, f"{name}.")
        elif key != "boxes" and value not in (None, "", []):
            yield name, _text(value)


def _text(value: Any) -> str:
    """A list of texts is numbered, one of numbers is a place in whole pixels."""
    if not isinstance(value, list):
        return _cell(value)
    if all(isinstance(one, int | float) for one in value):
        return ", ".join(str(round(one)) for one in value)
    return "<br>".join(f"{number}. {_cell(one)}" for number, one in enumerate(value, 1))


def _cell(value: Any) -> str:
    """Text as it is, whatever looks like a tag or a border included."""
    return " ".join(str(value).split()).replace("|", " ").replace("<", "&lt;")
