"""Painters that flow from noise to image, told by a language model: CogView4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sat_models.config.thin import FlowConfig
from sat_models.processing.text_encoder import TextEncoder
from sat_models.sampling.flow import flow, flow_steps
from sat_models.sampling.options import DrawingOptions
from sat_models.sampling.samplers import Predict, Sample
from sat_models.zoo.painter import Conditions, Painter


class FlowPainter(Painter):
    """A `Painter` whose texts have lengths of their own: what `encode` gives, and `denoise` takes, is a list of them,
    [1, T, E] each. Images are made one by one, so that none depends on the others' texts."""

    config: FlowConfig
    _nothing: Tensor | None = None
    """What an empty prompt reads like; the guiding forward is given it."""

    def _joined(self, rows: Sequence[Tensor]) -> list[Tensor]:
        return list(rows)

    def _rows(self, encoder: TextEncoder, prompts: Sequence[str]) -> list[Tensor]:
        if self._nothing is None:
            self._nothing = encoder.encode([""])
        return [encoder.encode([prompt]) for prompt in prompts]

    def _predict(
        self, text: Tensor | Sequence[Tensor], chosen: DrawingOptions, conditions: Conditions, rows: int
    ) -> Predict:
        given = [one.to(self.device, self.dtype) for one in (text.split(1) if isinstance(text, Tensor) else text)]
        told = {name: value.split(1) for name, value in self._told(conditions, rows).items()}
        nothing = None if chosen.guidance == 1 else self._without().to(self.device, self.dtype)
        model = self.model

        def one(latents: Tensor, row: int, time: float) -> Tensor:
            more = {name: values[row] for name, values in told.items()}
            how = {"latents": latents.to(self.dtype), "timestep": latents.new_full((1,), time), **more}
            v = model(text=given[row], **how)
            if nothing is None:
                return v
            without = model(text=nothing, **how)
            return without + chosen.guidance * (v - without)

        return lambda latents, time: torch.cat([one(each, row, time) for row, each in enumerate(latents.split(1))])

    def _without(self) -> Tensor:
        if self._nothing is None:
            self._nothing = self._text_encoder.get().encode([""])
            self._text_encoder.release()
        return self._nothing

    def _sampled(self, predict: Predict, start: Tensor, chosen: DrawingOptions) -> Iterator[Sample]:
        tokens = start.shape[-2] * start.shape[-1] // self.config.patch_size**2
        return flow(predict, start, flow_steps(chosen.steps, tokens, self.config))
