"""Models that write images or films as tokens: what all of them can do, from text ids to image codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sat_models import runtime
from sat_models.checkpoint.ice_files import IMAGE_FILE, TEXT_FILE, find_ice_file, open_ice_image, open_ice_text
from sat_models.checkpoint.layout import SATCheckpoint
from sat_models.config.image_tokens import ImageTokenConfig
from sat_models.errors import CheckpointError, InputError
from sat_models.models.common.image_tokens import ImageTokenModel
from sat_models.processing.ice_image import IceImage
from sat_models.processing.icetk import IceText
from sat_models.sampling.codes import CodeChoice, enlarge, refine, write_codes
from sat_models.zoo.locate import sat_home
from sat_models.zoo.part import Part

_RELEASES = "https://lfs.aminer.cn/misc/cogview"
SOURCES = {
    "cogview2-dsr": f"{_RELEASES}/cogview2/cogview2-dsr.zip",
    "cogview2-itersr": f"{_RELEASES}/cogview2/cogview2-itersr.zip",
    "cogvideo-stage2": "https://lfs.aminer.cn/misc/cogvideo/cogvideo-stage2.zip",
}
"""Where the models come from that go with a first one, by the names of their folders."""
TOLD = {"cogvideo-stage2": {"cogvideo_stage": 2, "window_size": 10}}
"""Sizes that the originals' scripts give to a model, where its `model_config.json` does not say them."""


@dataclass
class Companions:
    """What belongs to a model that writes codes: other models, words and pixels, each opened when it is needed.

    Attributes:
        open_model: opens a model in a folder or archive, with sizes that it may not say.
        keep: as `Painter`'s: "all", "model" or "none".
    """

    checkpoint: SATCheckpoint
    config: ImageTokenConfig
    device: torch.device
    dtype: torch.dtype
    open_model: Callable[[Path, Mapping[str, int]], ImageTokenModel]
    keep: str
    models: dict[str, Part[ImageTokenModel]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        step, config = self.checkpoint.step_folder, self.config
        self.words: Part[IceText] = Part(lambda: open_ice_text(step, config), keep=True)
        self.pixels: Part[IceImage] = Part(
            lambda: open_ice_image(step, config, device=self.device, dtype=self.dtype), keep=self.keep == "all"
        )

    def find(self, name: str) -> Path:
        """The folder or archive of another model. Raises CheckpointError with what to fetch."""
        step = self.checkpoint.step_folder.resolve()
        places = [folder / name for folder in (step.parent.parent, step.parent, sat_home())]
        candidates = (path for place in places for path in (place, place.with_name(f"{name}.zip")))
        if found := next((path for path in candidates if path.exists()), None):
            return found
        raise CheckpointError(
            f"the model {name} is missing, which goes on from {self.checkpoint.folder}: fetch it from {SOURCES[name]} "
            f"and unpack it to {places[0]} or {places[-1]}"
        )

    def model(self, name: str) -> Part[ImageTokenModel]:
        """Another model, which may not be opened yet."""
        if name not in self.models:
            opened = lambda: self.open_model(self.find(name), TOLD.get(name, {}))  # noqa: E731
            self.models[name] = Part(opened, keep=self.keep == "all")
        return self.models[name]

    def check(self, *names: str, clusters: str) -> None:
        """See, before any work, that all is there. Raises CheckpointError with what to fetch."""
        for file in (TEXT_FILE, IMAGE_FILE, clusters):
            find_ice_file(self.checkpoint.step_folder, file)
        for name in names:
            self.find(name)


class TokenPainter:
    """CogView2 or CogVideo, from text ids to image codes; subclasses go from a prompt to images and films.

    Args:
        config: sizes.
        model: opens the transformer, this process's part of it.
        device, dtype: of it.
        checkpoint: where its weights lie.
        open_model: see `Companions`.
        keep: "all": every model stays in memory once it was needed; "model": this one does; "none".
    """

    def __init__(
        self,
        config: ImageTokenConfig,
        *,
        model: Callable[[], ImageTokenModel],
        device: torch.device,
        dtype: torch.dtype,
        checkpoint: SATCheckpoint,
        open_model: Callable[[Path, Mapping[str, int]], ImageTokenModel],
        keep: str = "model",
    ) -> None:
        self.config, self.device, self.dtype, self.checkpoint = config, device, dtype, checkpoint
        self._model = Part(model, keep=keep != "none")
        self._others = Companions(checkpoint, config, device, dtype, open_model, keep)

    @property
    def model(self) -> ImageTokenModel:
        """The transformer; read from its files when it is first asked for."""
        return self._model.get()

    def write(self, text: Tensor, *, seed: int, **how: Any) -> Iterator[Tensor]:
        """CogLM: see `write_codes`. Raises InputError for another model."""
        return write_codes(self._for("write"), text.to(self.device), generator=generator_of(seed), **how)

    def enlarge(
        self, text: Tensor, small: Tensor, *, start: int, seed: int, choice: CodeChoice | None = None
    ) -> Tensor:
        """Direct super-resolution: see `enlarge` of `sampling.codes`. Raises InputError for another model."""
        model = self._for("enlarge")
        choice = choice or CodeChoice(temperature=1.0, best=100, cluster_temperature=0.89)
        text, small = text.to(self.device), small.to(self.device)
        return enlarge(model, text, small, start=start, choice=choice, generator=generator_of(seed))

    def refine(
        self, text: Tensor, large: Tensor, *, start: int, seed: int, temperature: float = 1.0
    ) -> Iterator[Tensor]:
        """Iterative super-resolution: see `refine` of `sampling.codes`. Raises InputError for another model."""
        model = self._for("refine")
        text, large, how = text.to(self.device), large.to(self.device), {"start": start, "temperature": temperature}
        return refine(model, text, large, generator=generator_of(seed), **how)

    def _for(self, method: str) -> ImageTokenModel:
        if self.model.does != method:
            can = f"its method is '{self.model.does}'" if self.model.does else "call its model"
            raise InputError(f"'{method}' is not what a {type(self.model).__name__} does; {can}")
        return self.model

    def _ids(self, text: str) -> list[int]:
        """Ids of a text, the same on all processes, of which the first reads the file."""
        words = self._others.words
        return runtime.broadcast_object(runtime.in_step(lambda: words.get().ids(text) if runtime.rank() == 0 else None))

    def _special(self, name: str) -> int:
        words = self._others.words
        found = runtime.in_step(lambda: getattr(words.get(), name) if runtime.rank() == 0 else None)
        return runtime.broadcast_object(found)


def generator_of(seed: int) -> torch.Generator:
    """On the CPU, so that a seed means the same on every device."""
    return torch.Generator().manual_seed(seed)


def whole_rows(codes: list[Tensor] | Tensor, side: int) -> Tensor | None:
    """The codes [1, rows, side] of an image's rows that are there; None before the first one."""
    flat = codes.flatten() if isinstance(codes, Tensor) else torch.cat(codes) if codes else torch.empty(0)
    rows = len(flat) // side
    return flat[: rows * side].view(1, rows, side) if rows else None
