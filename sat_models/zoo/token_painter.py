"""A model that writes images or films as tokens: the object that `load_pretrained` gives for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from sat_models.checkpoint.layout import SATCheckpoint
from sat_models.config.image_tokens import ImageTokenConfig
from sat_models.errors import InputError
from sat_models.models.common.image_tokens import ImageTokenModel
from sat_models.sampling.codes import CodeChoice, enlarge, refine, write_codes
from sat_models.zoo.part import Part


class TokenPainter:
    """CogView2 or CogVideo, from text ids to image codes.

    Words and pixels are icetk's: `ice_text.model` makes the ids (20000 + those of the sentencepiece file) and
    `ice_image.pt` an image of the codes. The zoo does not read these two files yet.

    Args:
        config: sizes.
        model: opens the transformer, this process's part of it.
        device, dtype: of it.
        checkpoint: where its weights lie.
    """

    def __init__(
        self,
        config: ImageTokenConfig,
        *,
        model: Callable[[], ImageTokenModel],
        device: torch.device,
        dtype: torch.dtype,
        checkpoint: SATCheckpoint,
    ) -> None:
        self.config, self.device, self.dtype, self.checkpoint = config, device, dtype, checkpoint
        self._model = Part(model, keep=True)

    @property
    def model(self) -> ImageTokenModel:
        """The transformer; read from its files when it is first asked for."""
        return self._model.get()

    def write(self, text: Tensor, *, seed: int, **how: Any) -> Iterator[Tensor]:
        """CogLM: see `write_codes`. Raises InputError for another model."""
        return write_codes(self._for("write"), text.to(self.device), generator=_generator(seed), **how)

    def enlarge(
        self, text: Tensor, small: Tensor, *, start: int, seed: int, choice: CodeChoice | None = None
    ) -> Tensor:
        """Direct super-resolution: see `enlarge` of `sampling.codes`. Raises InputError for another model."""
        model = self._for("enlarge")
        choice = choice or CodeChoice(temperature=1.0, best=100, cluster_temperature=0.89)
        text, small = text.to(self.device), small.to(self.device)
        return enlarge(model, text, small, start=start, choice=choice, generator=_generator(seed))

    def refine(
        self, text: Tensor, large: Tensor, *, start: int, seed: int, temperature: float = 1.0
    ) -> Iterator[Tensor]:
        """Iterative super-resolution: see `refine` of `sampling.codes`. Raises InputError for another model."""
        model = self._for("refine")
        text, large, how = text.to(self.device), large.to(self.device), {"start": start, "temperature": temperature}
        return refine(model, text, large, generator=_generator(seed), **how)

    def _for(self, method: str) -> ImageTokenModel:
        if self.model.does != method:
            can = f"its method is '{self.model.does}'" if self.model.does else "call its model"
            raise InputError(f"'{method}' is not what a {type(self.model).__name__} does; {can}")
        return self.model


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
