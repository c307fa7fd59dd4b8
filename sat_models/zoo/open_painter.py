"""A painter from an opened checkpoint: its transformer, and the parts that lie beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from mixins.sat_compat import mpu
from sat_models import runtime
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.painter_parts import check_parts, open_codec, open_text_encoder
from sat_models.checkpoint.source import Source, open_source
from sat_models.config import FilmConfig
from sat_models.config.image_tokens import ImageTokenConfig
from sat_models.config.planned import PlannedConfig
from sat_models.config.thin import FlowConfig, UNetConfig
from sat_models.errors import ConfigError
from sat_models.models.common.diffusion import DiffusionModel
from sat_models.models.common.image_tokens import ImageTokenModel
from sat_models.models.common.thin import ThinModel
from sat_models.models.families import model_class
from sat_models.zoo.code_painter import CodePainter
from sat_models.zoo.film_painter import FilmPainter
from sat_models.zoo.film_writer import FilmWriter
from sat_models.zoo.flow_painter import FlowPainter
from sat_models.zoo.locate import locate
from sat_models.zoo.painter import KEEPS, Painter
from sat_models.zoo.planned_painter import PlannedPainter
from sat_models.zoo.token_painter import TokenPainter
from sat_models.zoo.unet_painter import UNetPainter

ImagePainter = Painter | CodePainter | PlannedPainter
"""What draws an image from a prompt."""


@dataclass(frozen=True, kw_only=True)
class ForDrawing:
    """What `load_pretrained` takes for models that draw alone.

    Attributes:
        keep: what stays in memory between the steps of a painter: "all", "model" (its transformer, the default) or
            "none"; see `Painter`.
        quant_text: 8 or 4 bits per weight of the linears of the text encoder; None leaves them in `dtype`.
        relay: name or path of a model that enlarges what is drawn: a draw is then both. See `UNetPainter`.

    Raises:
        ConfigError: a value that is not allowed.
    """

    keep: str | None = None
    quant_text: int | None = None
    relay: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep not in KEEPS:
            raise ConfigError(f"keep is {self.keep!r}; allowed: {', '.join(KEEPS)}")
        if self.quant_text not in (None, 4, 8):
            raise ConfigError(f"quant_text is {self.quant_text!r}; allowed: 8 or 4 (bits per weight), or none")

    def refuse(self) -> None:
        """Raise ConfigError if anything was asked for: the model talks."""
        if given := [field.name for field in fields(self) if getattr(self, field.name) is not None]:
            raise ConfigError(f"{', '.join(given)}: for models that draw; leave it out for one that talks")


def open_painter(
    source: Source, chosen: ForDrawing, *, device: torch.device, dtype: torch.dtype
) -> Painter | PlannedPainter | TokenPainter:
    """A painter whose weights are held against its sizes; they are read when they are needed.

    Raises:
        CheckpointError: names or shapes that do not fit.
        ConfigError: a relay for a model that has none, or that does not fit.
    """
    more = {}
    if chosen.relay is not None:
        after = runtime.in_step(lambda: _enlarger(source, chosen))
        more["relay"] = open_painter(after, replace(chosen, relay=None), device=device, dtype=dtype)
    runtime.in_step(lambda: source.open(dtype))

    def model() -> DiffusionModel | ThinModel:
        return runtime.in_step(lambda: source.load(device, dtype))[0].eval().requires_grad_(False)

    checkpoint, config = source.checkpoint, source.config
    if isinstance(config, ImageTokenConfig):
        return _open_token_painter(source, chosen, model, device=device, dtype=dtype)
    kinds = ((UNetConfig, UNetPainter), (FlowConfig, FlowPainter), (FilmConfig, FilmPainter))
    kind = next((painter for sizes, painter in kinds if isinstance(config, sizes)), Painter)
    return kind(
        config,
        model=model,
        text_encoder=lambda: open_text_encoder(
            checkpoint.step_folder, config, device=device, dtype=dtype, bits=chosen.quant_text
        ),
        check=lambda: check_parts(checkpoint.step_folder, config),
        codec=lambda: open_codec(checkpoint.step_folder, config, device=device, dtype=dtype),
        device=device,
        dtype=dtype,
        checkpoint=checkpoint,
        keep=chosen.keep or "model",
        **more,
    )


def _enlarger(source: Source, chosen: ForDrawing) -> Source:
    """The model that enlarges what that of `source` draws."""
    found = open_source(locate(chosen.relay))
    if not (isinstance(source.config, UNetConfig) and isinstance(found.config, UNetConfig)):
        raise ConfigError(
            f"relay is for two UNets, one that draws and one that enlarges; these are a {source.config.model_class}"
            f" and a {found.config.model_class}"
        )
    return replace(found, config=found.config.as_enlarger())


_WRITERS = {"write": CodePainter, "film": FilmWriter}
"""By what a model does; others are parts that these two go on with."""


def _open_token_painter(
    source: Source, chosen: ForDrawing, model: Callable[[], ImageTokenModel], *, device: torch.device,
    dtype: torch.dtype,
) -> PlannedPainter | TokenPainter:  # fmt: skip
    if chosen.quant_text is not None:
        raise ConfigError(
            f"quant_text is {chosen.quant_text}, but a {source.config.model_class} has no text encoder; leave it out"
        )
    told = {"device": device, "dtype": dtype, "checkpoint": source.checkpoint, "keep": chosen.keep or "model"}
    if isinstance(source.config, PlannedConfig):
        return PlannedPainter(source.config, model=model, **told)

    def open_model(place: Path, told: Mapping[str, int]) -> ImageTokenModel:
        def opened() -> ImageTokenModel:
            found = find_checkpoint(place)
            found = replace(found, config={**told, **found.config})
            size = mpu.get_model_parallel_world_size()
            return open_source(found, quantisation=source.quantisation, size=size).load(device, dtype)[0]

        return runtime.in_step(opened).eval().requires_grad_(False)

    kind = _WRITERS.get(model_class(source.config.model_class).does, TokenPainter)
    return kind(source.config, model=model, open_model=open_model, **told)
