"""Training rows in pairs: the same question with the better and with the worse answer (`--objective dpo`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from sat_models.errors import InputError
from sat_models.processing.inputs import VLMInputs
from sat_models.processing.intake import plans_of, sources_of
from sat_models.processing.layout import IGNORE, collate
from sat_models.processing.prompts import Turn
from sat_models.training.data import Part, VLMDataset
from sat_models.training.records import Record


class PairDataset(VLMDataset):
    """A sample is two rows, the chosen answer's first. Only the last answer of a dialogue is weighed; what stands
    before it is the question, as far as the prompt style keeps it."""

    def _fault(self, record: Record) -> str | None:
        if record.rejected is None:
            return (
                "it has one answer, but --objective dpo learns from pairs; give it a 'rejected_response' (or 'chosen' "
                "and 'rejected'), or leave it out"
            )
        return None

    def _places(self, record: Record) -> list[Sequence[int]]:
        return super()._places(record)[-1:]

    def _measured(self, parts: Sequence[Part]) -> Iterable[Turn]:
        ((record, places),) = parts
        *past, (question, chosen) = self._turns(record, places)
        return [*past, (question, max(chosen, record.rejected or "", key=len))]

    def _inputs(self, parts: Sequence[Part]) -> VLMInputs:
        ((record, places),) = parts
        sources = sources_of(list(record.images), self.processor.images)
        plans = plans_of(sources, self.processor.images)
        layouts = []
        for row in record.rows():
            turns, options = self._sample(row, places)
            layouts += self.processor.training_layouts(turns, plans, **options)[-1:]
        one, other = (layout.labels[layout.labels != IGNORE] for layout in layouts)
        if torch.equal(one, other):
            raise InputError(
                f"its two answers are the same {len(one)} tokens (cut to max_length {self.max_length}), so that "
                "neither is better; raise max_length, or leave the pair out"
            )
        rows = self.processor.with_pixels(layouts, sources, plans)
        return collate(rows, self.processor.tokenizer.eos_id)
