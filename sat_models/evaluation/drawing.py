"""Judging images by their prompts: a model of the zoo that talks is asked about each, and where there is a rule on
pixels, that measures, too.

The kinds of questions are GenEval's (arXiv 2310.11513): is each thing there, how many are there, of what colour, where
beside another; and of what size. The judge's own limits are seen on real images of the same prompts, judged alike.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from sat_models import runtime
from sat_models.evaluation import metrics
from sat_models.evaluation.runner import AnswerFn
from sat_models.evaluation.wishes import NUMBERS, PLACES, Wanted, Wish, article, opposite, plural
from sat_models.files import appended_records, kept_records

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
"""Of which one is said; GenEval's, and gray."""
_SAME = {"grey": "gray", "violet": "purple", "a": "1", "an": "1", "none": "0", "under": "below", "over": "above"}
_SIZES = ("small", "large")
_ANY = "shape"
"""What the things of the world of shapes are called together."""

Rule = Callable[[Wish, Image.Image], dict[str, float]]
"""What of a prompt is in an image, each 1 or 0, and `right`, all of it."""


@dataclass(frozen=True)
class Check:
    """A question about an image, and what a right answer says."""

    kind: str
    question: str
    expected: str
    choices: tuple[str, ...]

    def is_right(self, answer: str) -> bool:
        """Whether an answer says what is expected and none of the other choices; of a yes or no as POPE reads it."""
        if self.kind == "object":
            return metrics.yes_or_no(answer) == self.expected
        words = [_SAME.get(word, word) for word in re.findall(r"\w+", answer.lower())]
        if self.kind == "count":
            words = [str(NUMBERS.index(word)) if word in NUMBERS else word for word in words]
            return next((word for word in words if word.isdigit()), "") == self.expected
        return set(words).intersection(self.choices) == {self.expected}


def checks_of(wish: Wish) -> list[Check]:
    """What is asked about the image of a prompt."""
    checks = []
    if wish.only:
        checks.append(_count(_ANY, wish.total))
    nouns = [thing.noun for thing in wish.things]
    for thing in wish.things:
        if thing.count > 1:
            if not (wish.only and thing.name == _ANY):
                checks.append(_count(thing.name, thing.count))
            continue
        checks.append(Check("object", f"Is there {article(thing.name)}?", "yes", ("yes", "no")))
        if thing.color and nouns.count(thing.noun) == 1 and thing.noun != _ANY:
            checks.append(Check("color", f"What color is the {thing.noun}?", thing.color, COLORS))
        if thing.size:
            checks.append(Check("size", f"Is the {thing.name} small or large?", thing.size, _SIZES))
        checks += [_place(thing, place, wish.things[of]) for place, of in thing.places]
    return checks


def _count(name: str, expected: int) -> Check:
    return Check("count", f"How many {plural(name)} are there?", str(expected), ())


def _place(thing: Wanted, place: str, other: Wanted) -> Check:
    choices = PLACES[:2] if place in PLACES[:2] else PLACES[2:]
    between = "left or right of" if choices == PLACES[:2] else "above or below"
    question = f"Is the {thing.name} {between} the {other.name}?"
    return Check("place", question, place, (place, opposite(place)))


def drawn_images(
    painter: Any, prompts: Sequence[str], folder: Path, *, seed: int, batch_size: int = 8, **options: Any
) -> list[Path]:
    """The image of each prompt, drawn where it is not there yet; the seed of the first is given, each further one has
    the next, so an image does not depend on where a run stopped.

    Args:
        painter: has `draw`, as a `Painter` does.
        options: what its `draw` takes besides.
    """
    files = [folder / f"{number:04d}.png" for number in range(1, len(prompts) + 1)]
    runtime.in_step(lambda: folder.mkdir(parents=True, exist_ok=True))
    missing = runtime.broadcast_object([not file.is_file() for file in files])
    with tqdm(total=sum(missing), desc="drawing", unit="image", disable=runtime.rank() > 0) as bar:
        for first in range(0, len(files), batch_size):
            some = slice(first, first + batch_size)
            if not any(missing[some]):
                continue
            images = painter.draw(list(prompts[some]), seed=seed + first, **options)
            if runtime.rank() == 0:
                for file, image in zip(files[some], images, strict=True):
                    _save(image, file)
            bar.update(sum(missing[some]))
    runtime.broadcast_object(None)  # until all files are there
    return files


def _save(image: Image.Image, file: Path) -> None:
    draft = file.with_suffix(".part")
    image.save(draft, format="PNG")
    draft.replace(file)


def judge(
    wishes: Sequence[Wish],
    open_image: Callable[[int], Image.Image],
    answer: AnswerFn,
    *,
    rule: Rule | None = None,
    whose: str = "drawn",
    kept: Path | None = None,
    prompt: str = "{question}",
    batch_size: int = 8,
) -> list[dict[str, Any]]:
    """A record of each prompt's image: what was asked and answered, the judge's scores, and the rule's.

    Args:
        open_image: the image of the prompt of this number.
        answer: asks the judge; processes that share a model all call it.
        rule: measures, too.
        whose: "drawn" or "real": part of the record's id.
        kept: a JSONL file that records are added to at once; what it holds is not asked again.
        prompt: what is asked, with {question}.
        batch_size: images at a time.
    """
    before = kept_records(kept) if kept and runtime.rank() == 0 else []
    done = runtime.broadcast_object({record["id"]: record for record in before})
    ids = [f"{whose}/{number + 1}" for number in range(len(wishes))]
    todo = [number for number, name in enumerate(ids) if name not in done]
    bar = tqdm(total=len(todo), desc=f"judging {whose} images", unit="image", disable=runtime.rank() > 0)
    with bar, appended_records(kept if runtime.rank() == 0 else None) as write:
        for start in range(0, len(todo), batch_size):
            some = todo[start : start + batch_size]
            images = {number: open_image(number) for number in some}
            asked = [(number, check) for number in some for check in checks_of(wishes[number])]
            said = answer([(images[number], prompt.replace("{question}", check.question)) for number, check in asked])
            texts = [(number, check, each["text"]) for (number, check), each in zip(asked, said, strict=True)]
            for number in some:
                mine = [(check, text) for other, check, text in texts if other == number]
                record = {"id": ids[number], **_record(wishes[number], mine)}
                if rule is not None:
                    record["rule"] = rule(wishes[number], images[number])
                write(record)
                done[ids[number]] = record
            bar.update(len(some))
    return [done[name] for name in ids]


def _record(wish: Wish, answers: Iterable[tuple[Check, str]]) -> dict[str, Any]:
    asked = [
        {"kind": c.kind, "question": c.question, "expected": c.expected, "answer": a, "right": float(c.is_right(a))}
        for c, a in answers
    ]
    by_kind: dict[str, list[float]] = defaultdict(list)
    for each in asked:
        by_kind[each["kind"]].append(each["right"])
    scores = {kind: min(rights) for kind, rights in by_kind.items()}
    return {
        "kind": wish.kind,
        "prompt": wish.prompt,
        "judge": {**scores, "right": min(scores.values())},
        "asked": asked,
    }


def summary(records: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Means by kind of prompt, and over all.

    Args:
        records: of `judge`, by whose images they are about ("drawn", "real").

    Returns:
        By kind and then by whose images: `count`, the means of `judge` and of `rule` where there is one, and `agree`,
        how often the two say the same of a whole image.
    """
    kinds = list(dict.fromkeys(record["kind"] for group in records.values() for record in group))
    rows = {kind: {w: [r for r in group if r["kind"] == kind] for w, group in records.items()} for kind in kinds}
    rows["all"] = {whose: list(group) for whose, group in records.items()}
    return {kind: {whose: _means(group) for whose, group in row.items() if group} for kind, row in rows.items()}


def _means(group: Sequence[dict[str, Any]]) -> dict[str, Any]:
    means: dict[str, Any] = {"count": len(group)}
    for who in ("judge", "rule"):
        if all(who in record for record in group):
            scores = [record[who] for record in group]
            names = dict.fromkeys(name for score in scores for name in score)
            means[who] = {name: _mean(score[name] for score in scores if name in score) for name in names}
    if "rule" in means:
        means["agree"] = _mean(record["judge"]["right"] == record["rule"]["right"] for record in group)
    return means


def _mean(values: Iterable[float]) -> float:
    found = [float(value) for value in values]
    return sum(found) / len(found)
