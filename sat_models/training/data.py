"""Records -> training samples.

Labels are unshifted, as `processing.layout` makes them: `labels[i]` is what should stand at position i, so it equals
`input_ids[i]` there (at the end of an earlier answer it is EOS although the input goes on with the next question), -100
where nothing is trained. The loss compares `logits[:, :-1]` with `labels[:, 1:]`.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch

from sat_models.config import ImagePlan
from sat_models.errors import ConfigError, InputError, ZooError
from sat_models.processing.layout import IGNORE, MIN_ANSWER_ROOM, VLMInputs, collate
from sat_models.processing.processor import Processor
from sat_models.processing.prompts import Turn, text_of
from sat_models.text import printable
from sat_models.training.records import PROBLEMS_SHOWN, Record
from sat_models.training.samples import Place, Sample

logger = logging.getLogger(__name__)

BAD_POLICIES = ("error", "skip")
_TOKENS = re.compile(r"[A-Za-z]{1,6}|[^A-Za-z\s]")


Part = tuple[Record, tuple[int, ...]]
"""A record, and the numbers of those of its turns that make one sample."""


class VLMDataset:
    """Training samples of records.

    `chat` and `chat_old` make one sample of all turns of a record, `base` and `vqa` one of each turn. A subclass makes
    rows of another kind: of other records (`_fault`, `_places`), of several parts (`_grouped`), with other inputs
    (`_inputs`, `_measured`).

    With `on_bad="skip"`, samples whose question does not fit are left out at once. A picture that proves unreadable
    when it is loaded is replaced by the next good sample, the same on every rank and in every run, so that the size of
    the dataset, of an epoch and of each batch never changes.

    Attributes:
        records: what it was made of.
        samples: how many, in all rows.
        lengths: roughly the tokens of each row, for grouping; cheap, and the same everywhere.
        largest_images: what becomes of the images of the row with the most tiles.
        kinds: none; samples of any length share a batch.
        bad: reasons of samples found bad, by source.
    """

    kinds: ClassVar[None] = None

    def __init__(
        self,
        records: Sequence[Record],
        processor: Processor,
        *,
        version: str | None = None,
        max_length: int | None = None,
        on_bad: str = "error",
    ) -> None:
        """Looks every record over, and keeps those that fit.

        Args:
            records: see `formats.read_records`.
            processor: of the model to be trained.
            version: prompt style; None takes the processor's.
            max_length: longest sample in tokens, pictures included; None takes the processor's.
            on_bad: "error" raises at the first bad sample, "skip" goes on without it.

        Raises:
            ConfigError: unknown `on_bad`.
            InputError: no tokenizer, a question that does not fit (with "error"), or no usable sample at all.
            UnknownNameError: unknown `version`.
        """
        if on_bad not in BAD_POLICIES:
            raise ConfigError(f"on_bad is '{on_bad}'; it must be one of {', '.join(BAD_POLICIES)}")
        self.processor, self.on_bad, self.records = processor, on_bad, records
        self.version = version or processor.version
        self.max_length = max_length or processor.max_length
        self.bad: dict[str, str] = {}
        self._style = processor.style(self.version).trained
        parts: list[Part] = [
            (record, tuple(places))
            for record in filter(self._suits, records)
            for places in self._places(record)
            if self._fits(record, self._turns(record, places))
        ]
        self._items = self._grouped(parts)
        self.samples = sum(map(len, self._items))
        plans = [processor.plans(record.images) for (record, _), *_ in self._items]
        self.lengths = [
            rough_length(processor, own, self._measured(row)) for own, row in zip(plans, self._items, strict=True)
        ]
        self.largest_images = max(plans, key=lambda own: sum(plan.num_tiles for plan in own), default=[])
        if self.bad:
            logger.warning("%d record(s) with samples left out", len(self.bad))
        if not self._items:
            reason = next(iter(self.bad.values()), "there is nothing to read")
            raise InputError(f"no usable sample in {len(records)} record(s): {reason}")

    def _fault(self, record: Record) -> str | None:
        """The reason why a record is none for these rows, if there is one."""
        if record.rejected is not None:
            return (
                "it has a rejected answer, which --objective dpo alone learns from; give that, or take the rejected "
                "answer out"
            )
        return None

    def _suits(self, record: Record) -> bool:
        """True if a record is one for these rows."""
        if (fault := self._fault(record)) is not None:
            self._reject(record.source, InputError(fault))
        return fault is None

    def _places(self, record: Record) -> list[Sequence[int]]:
        """The turns of each sample of a record, whose last answer is trained."""
        parts = self.processor.split_turns(range(len(record.turns)), self.version)
        return [places for places in parts if places[-1] not in record.untrained]

    def _measured(self, parts: Sequence[Part]) -> Iterable[Turn]:
        """The turns whose text a row holds."""
        return itertools.chain.from_iterable(self._turns(*part) for part in parts)

    def _grouped(self, parts: Sequence[Part]) -> list[tuple[Part, ...]]:
        """The parts of each row, in order."""
        return [(part,) for part in parts]

    def _inputs(self, parts: Sequence[Part]) -> VLMInputs:
        """One row. Raises InputError where it cannot be made."""
        ((record, places),) = parts
        turns, options = self._sample(record, places)
        return self.processor.training_sample(list(record.images), turns, **options)

    def _sample(self, record: Record, places: Sequence[int]) -> tuple[tuple[Turn, ...], dict[str, Any]]:
        """The turns of a part, and the further arguments of `Processor.training_layouts`."""
        return self._turns(record, places), {
            "version": self.version,
            "max_length": self.max_length,
            "untrained": [number for number, place in enumerate(places) if place in record.untrained],
            "system": self.system_of(record),
        }

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> VLMInputs:
        """One sample, a batch of one with labels; see `take`."""
        return self.take(index).inputs

    def source(self, index: int) -> str:
        """ "file:line" of a row, of the first of its parts."""
        (record, _), *others = self._items[index]
        return f"{record.source} and {len(others)} more about the same images" if others else record.source

    def dialogue(self, index: int) -> tuple[Record, tuple[Turn, ...]]:
        """The record of a row's first part and those of its turns that the part holds."""
        record, places = self._items[index][0]
        return record, self._turns(record, places)

    def system_of(self, record: Record) -> str | None:
        """The system text of a record that is not part of its first question."""
        return record.said(self._style)[1]

    def _turns(self, record: Record, places: Sequence[int]) -> tuple[Turn, ...]:
        turns, _ = record.said(self._style, self.processor.box_form)
        return tuple(turns[place] for place in places)

    def with_images(self) -> int:
        """How many rows have a picture."""
        return sum(bool(record.images) for (record, _), *_ in self._items)

    def take(self, index: int) -> Sample:
        """One sample.

        Raises:
            InputError: it is bad (with "error"; the message names its file and line), or all are (with "skip").
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        for at in itertools.chain(range(index, len(self)), range(index)):
            try:
                return Sample(self._inputs(self._items[at]), at, self.source(at))
            except InputError as error:
                self._reject(self.source(at), error)
        raise InputError(f"none of the {len(self)} samples can be read; the last reason: {self.bad[self.source(at)]}")

    def collate(self, samples: Sequence[Sample], place: Place) -> VLMInputs:
        """One batch; nothing is drawn for it, so its place is nothing to it.

        Padding is EOS, an id that every vocabulary has; nothing looks at it.
        """
        rows = [sample.inputs if sample.counts else _muted(sample.inputs) for sample in samples]
        return collate(rows, self.processor.tokenizer.eos_id)

    def _fits(self, record: Record, turns: Sequence[Turn]) -> bool:
        """True if the first question leaves room for an answer. Texts that are short in bytes are not tokenised."""
        room, system, question = self.max_length - MIN_ANSWER_ROOM, self.system_of(record), turns[0][0]
        shown = self.processor.system if system is None and self._style.system is not None else system
        try:
            plans = self.processor.plans(record.images)
            plans = plans[: self._style.images_up_to(1, turns, len(plans))]
            parts = self._style.parts(question, images=len(plans), system=shown)
        except InputError as error:
            self._reject(record.source, error)
            return False
        bytes_of_text = sum(len(text_of([part]).encode()) + 1 for part in parts)  # a token is a byte, or special
        if self.processor.prompt_length(bytes_of_text, plans) <= room:
            return True
        needed = self.processor.question_length(question, plans, self.version, system)
        if needed <= room:
            return True
        self._reject(record.source, InputError(too_long(needed, self.max_length, len(plans))))
        return False

    def _reject(self, source: str, error: ZooError) -> None:
        """Raises, or remembers the reason and says it once."""
        if self.on_bad == "error":
            raise InputError(f"{source}: {error} (on_bad='skip' leaves bad samples out)") from error
        if source in self.bad:
            return
        self.bad[source] = str(error)
        if len(self.bad) <= PROBLEMS_SHOWN:
            more = "; further ones are counted only" if len(self.bad) == PROBLEMS_SHOWN else ""
            logger.warning("bad sample %s: %s%s", printable(source), error, more)


def _muted(inputs: VLMInputs) -> VLMInputs:
    """The same without targets."""
    return dataclasses.replace(inputs, labels=torch.full_like(inputs.labels, IGNORE))


def too_long(needed: int, max_length: int, images: int) -> str:
    """The message about a question that leaves no room for an answer, for training and validator alike."""
    return (
        f"the question alone takes {needed} tokens with {images} picture(s), so that it cannot be trained on: "
        f"max_length {max_length} leaves {max_length - MIN_ANSWER_ROOM}; raise max_length or shorten it"
    )


def rough_length(processor: Processor, plans: Sequence[ImagePlan], turns: Iterable[Turn]) -> int:
    """About as many tokens as a sample takes, without tokenising: only its order is relied on."""
    text = sum(len(_TOKENS.findall(part)) for turn in turns for part in turn)
    return processor.prompt_length(text, plans)
