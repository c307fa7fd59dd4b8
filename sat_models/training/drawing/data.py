"""Latents and encoded texts -> batches with their noise.

Legend: B batch, C channels, h and w of the latents (frames before C, where there are any), T text tokens, E text width.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sat_models.digests import digest_of
from sat_models.errors import InputError
from sat_models.sampling.schedule import TIMES
from sat_models.training.samples import Place, Sample


@dataclass(frozen=True)
class LatentInputs:
    """A batch for the v-loss.

    Attributes:
        latents: of the images, [B, C, h, w] in fp32, as the model knows them.
        noise: as latents.
        timestep: [B], 0 … 999.
        text: [B, T, E]; zeros where a row goes without its text.
        conditions: what else the model is told, by its arguments, [B, …].
        weights: [B], 1, or 0 for a row that only fills the batch up.
        tokens: that the model reads of all rows.
    """

    latents: Tensor
    noise: Tensor
    timestep: Tensor
    text: Tensor
    conditions: Mapping[str, Tensor]
    weights: Tensor
    tokens: int = 0

    @property
    def has_images(self) -> bool:
        """Always."""
        return True

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LatentInputs:
        """A copy on `device`; `dtype` is for the text alone: noise comes to the latents in fp32."""
        return replace(
            self,
            latents=self.latents.to(device),
            noise=self.noise.to(device),
            timestep=self.timestep.to(device),
            text=self.text.to(device=device, dtype=dtype),
            conditions={name: value.to(device) for name, value in self.conditions.items()},
            weights=self.weights.to(device),
        )


@dataclass(frozen=True)
class Item:
    """One training sample of a painter.

    Attributes:
        source: "file:line".
        kind: items of one kind have latents of one shape.
        tokens: that the model reads of it.
        read: mean and logarithm of the variance of its latents [2C, h, w], and the encoded text [T, E]. Raises
            InputError.
        conditions: what else the model is told, by its arguments.
    """

    source: str
    kind: Hashable
    tokens: int
    read: Callable[[], tuple[Tensor, Tensor]]
    conditions: Mapping[str, Sequence[float] | Tensor] = field(default_factory=dict)


class LatentDataset:
    """See `TrainingData`. What is drawn for a row (latents from their distribution, noise, time, whether it goes
    without its text) hangs on the seed and the row's place in the run alone.

    Args:
        items: of the data.
        scale: what latents are multiplied by for the model.
        seed: of the draws.
        text_dropout: share of rows whose text is left out, so that guidance has something to move away from.
    """

    def __init__(self, items: Sequence[Item], *, scale: float, seed: int, text_dropout: float = 0.0) -> None:
        if not items:
            raise InputError("there is no usable image in the data")
        self.items, self.scale, self.seed, self.text_dropout = items, scale, seed, text_dropout
        self.lengths = [item.tokens for item in items]
        self.kinds = [item.kind for item in items]
        self.bad: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.items)

    def take(self, index: int) -> Sample:
        """One sample. Raises InputError."""
        item = self.items[index]
        return Sample((*item.read(), item), index, item.source)

    def collate(self, samples: Sequence[Sample], place: Place) -> LatentInputs:
        """One batch."""
        rows = [self._row(sample, place.step, row) for sample, row in zip(samples, place.rows, strict=True)]
        latents, noise, times, texts = zip(*rows, strict=True)
        items = [sample.inputs[2] for sample in samples]
        return LatentInputs(
            latents=torch.stack(latents),
            noise=torch.stack(noise),
            timestep=torch.tensor(times, dtype=torch.float32),
            text=torch.stack(texts),
            conditions={
                name: torch.stack([torch.as_tensor(item.conditions[name]).float() for item in items])
                for name in items[0].conditions
            },
            weights=torch.tensor([float(sample.counts) for sample in samples]),
            tokens=sum(item.tokens for item in items),
        )

    def _row(self, sample: Sample, step: int, row: int) -> tuple[Tensor, Tensor, int, Tensor]:
        """Latents, noise, time and text of one row."""
        moments, text, _ = sample.inputs
        number = int(digest_of(["row", self.seed, step, row])[:15], 16)
        generator = torch.Generator().manual_seed(number)
        mean, variance = moments.chunk(2, dim=-3)
        spread = torch.exp(0.5 * variance.clamp(-30, 20))  # the limits are those of the encoder's own class
        latents = (mean + spread * torch.randn(mean.shape, generator=generator)) * self.scale
        noise = torch.randn(mean.shape, generator=generator)
        time = int(torch.randint(TIMES, (), generator=generator))
        without = torch.rand((), generator=generator).item() < self.text_dropout
        return latents, noise, time, torch.zeros_like(text) if without else text
