"""Training rows that hold an image once, with all the samples about it that fit (`--pack`)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from sat_models.config import ImagePlan, ModelConfig, VisionLanguageConfig
from sat_models.errors import ConfigError, InputError
from sat_models.processing.inputs import TokenLayout, VLMInputs
from sat_models.processing.intake import plans_of, sources_of
from sat_models.processing.packing import common_length, common_part, pack
from sat_models.training.data import Part, VLMDataset

logger = logging.getLogger(__name__)


def check_packs(config: ModelConfig) -> None:
    """Sees that a model's samples can share an image.

    Raises:
        ConfigError: the model has none, or its images see the question.
    """
    if not isinstance(config, VisionLanguageConfig):
        raise ConfigError(f"--pack: {config.model_class} reads no images that samples could share; leave it out")
    if config.sequence_form.prefix_attention:
        raise ConfigError(
            f"--pack: {config.model_class} reads its context both ways, so that the tokens of an image depend on the "
            "question behind it and no two questions can share them; leave it out"
        )


@dataclass
class _Row:
    parts: list[Part]
    room: int


class PackedDataset(VLMDataset):
    """Rows of samples about the same images.

    Samples share a row where they have the same images in the same order and the same text in front of the last one.
    In the order of the data, each goes into the first such row that has room: a row takes at most `max_length` tokens,
    its images counted once. What has no image, or an image behind a trained answer (or nothing between an image and
    the answer), has a row of its own.
    """

    def _grouped(self, parts: Sequence[Part]) -> list[tuple[Part, ...]]:
        count = Counter(record.images for record, _ in parts)
        plans = {images: self.processor.plans(images) for images, times in count.items() if images and times > 1}
        rows: list[_Row] = []
        opened: dict[Hashable, list[_Row]] = {}
        for part in parts:
            images = part[0].images
            if images not in plans:
                rows.append(_Row([part], 0))
                continue
            try:
                layout = self._layout(part, plans[images])
            except InputError as error:
                self._reject(part[0].source, error)
                continue
            common = common_length(layout)
            own, like = len(layout) - common, opened.setdefault((images, common_part(layout)), [])
            row = next((row for row in like if row.room >= own), None) if common else None
            if row is None:
                row = _Row([], self.max_length - common)
                rows.append(row)
                like.append(row)
            row.parts.append(part)
            row.room -= own
        logger.info("packed: %d samples in %d rows", len(parts), len(rows))
        return [tuple(row.parts) for row in rows]

    def _inputs(self, parts: Sequence[Part]) -> VLMInputs:
        if len(parts) == 1:
            return super()._inputs(parts)
        sources = sources_of(list(parts[0][0].images), self.processor.images)
        plans = plans_of(sources, self.processor.images)
        row = pack([self._layout(part, plans) for part in parts])
        (made,) = self.processor.with_pixels([row], sources, plans)
        return made

    def _layout(self, part: Part, plans: Sequence[ImagePlan]) -> TokenLayout:
        turns, options = self._sample(*part)
        return self.processor.training_layouts(turns, plans, **options)[-1]
