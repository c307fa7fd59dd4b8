"""An annotated image -> training records: where is it, what is here, what is everywhere, what is not there.

Which are made hangs on the seed, the image's name and what is asked for, so that the same image gives the same samples
from every form of annotation and in every run.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from sat_models.processing.box_forms import Corners
from sat_models.training.boxed_text import BOX_MARK, FORM_MARK, BoxGroup, named
from sat_models.training.grounding.annotated import Annotated
from sat_models.training.grounding.asking import SHARES, Asking
from sat_models.training.records import ImageFile, Record


def records_of(found: Annotated, asking: Asking) -> Iterator[Record]:
    """The records of one image, each a question by itself: captions, REC, REG, grounded caption, what is not there."""
    maker = _Maker(found, asking)
    yield from maker.captions()
    yield from maker.places()
    yield from maker.names()
    yield from maker.description()
    yield from maker.absent()


def tasks_of(records: Iterable[Record]) -> dict[str, int]:
    """How many records each task has; those that were not made here are not counted."""
    tasks = (record.id.rpartition("#")[2] for record in records if "#" in record.id)
    return dict(Counter(task for task in tasks if task in SHARES))


class _Maker:
    """What is asked about one image."""

    def __init__(self, found: Annotated, asking: Asking) -> None:
        self.found, self.asking = found, asking
        self.by_name: dict[str, list[Corners]] = {}
        for thing in found.things:
            own = self.by_name.setdefault(thing.name, [])
            if thing.box not in own:
                own.append(thing.box)
        for boxes in self.by_name.values():
            boxes.sort()

    def captions(self) -> Iterator[Record]:
        for number, caption in enumerate(self.found.captions):
            for record in self._record("caption", str(number), {"caption": caption}, []):
                yield replace(record, boxes=None)  # a caption says what it says

    def places(self) -> Iterator[Record]:
        """REC: all boxes of each name."""
        for name, boxes in self._askable().items():
            words = {"ref": named(name), "box": BOX_MARK}
            yield from self._record("rec", name, words, [self._group(boxes, name)])

    def names(self) -> Iterator[Record]:
        """REG: the name of each box."""
        for name, boxes in self.by_name.items():
            for number, box in enumerate(boxes):
                words = {"ref": name, "box": BOX_MARK}
                yield from self._record("reg", f"{name}/{number}", words, [self._group([box], name)])

    def description(self) -> Iterator[Record]:
        """A grounded caption: every box once, under its first name, from left to right."""
        first: dict[Corners, str] = {}
        for thing in self.found.things:
            first.setdefault(thing.box, thing.name)
        by_name: dict[str, list[Corners]] = {}
        for box in sorted(first):
            by_name.setdefault(first[box], []).append(box)
        if not first or len(first) > self.asking.most_boxes or self.found.partial or not self.found.whole:
            return
        listed = [
            f"{named(name if number else name[0].upper() + name[1:])} {BOX_MARK}" for number, name in enumerate(by_name)
        ]
        groups = [self._group(boxes, name) for name, boxes in by_name.items()]
        yield from self._record("grounded_caption", "", {"objects": _listing(listed)}, groups)

    def absent(self) -> Iterator[Record]:
        """Names of the annotators that are not on the image, about as many as there are names to ask for."""
        if not self.found.whole or not self.asking.share("absent"):
            return
        there = {name.casefold() for name in (*self.by_name, *self.found.partial)}
        others = sorted({name for name in self.found.known if name.casefold() not in there})
        wanted = min(len(others), max(1, len(self._askable())))
        for name in self._rng("absent names", "").sample(others, wanted):
            yield from self._record("absent", name, {"ref": named(name)}, [])

    def _askable(self) -> dict[str, list[Corners]]:
        most = self.asking.most_boxes
        return {n: boxes for n, boxes in self.by_name.items() if n not in self.found.partial and len(boxes) <= most}

    def _group(self, boxes: Iterable[Corners], name: str) -> BoxGroup:
        return BoxGroup(tuple(boxes), self.found.size, name=name)

    def _rng(self, task: str, what: str) -> random.Random:
        return random.Random(f"boxes/{self.asking.seed}/{_name(self.found.image)}/{task}/{what}")

    def _record(self, task: str, what: str, words: dict[str, str], groups: Sequence[BoxGroup]) -> Iterator[Record]:
        """The record of a task, where it is drawn."""
        rng, wording = self._rng(task, what), self.asking.wording(task)
        if rng.random() >= self.asking.share(task):
            return
        words = {**words, "format": FORM_MARK}
        question = rng.choice(wording.questions).format(**words)
        answer = rng.choice(wording.answers).format(**words)
        times = (question + answer).count(BOX_MARK) // max(1, len(groups))  # a wording may show them again
        source = self.found.source
        yield Record(f"{source}#{task}", (self.found.image,), ((question, answer),), source, boxes=(*groups,) * times)


def _listing(phrases: Sequence[str]) -> str:
    return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _name(image: ImageFile) -> str:
    return image.rpartition("/")[2] if isinstance(image, str) else image.name
