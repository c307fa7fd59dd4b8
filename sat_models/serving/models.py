"""The models of a server: the flags that name them, one that talks, one that draws, or both, and their queues."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sat_models.errors import ConfigError, ZooError
from sat_models.flags import add_model_flags, flag, loading, positive

if TYPE_CHECKING:
    from sat_models.generation.ranks import SharedEngine
    from sat_models.serving.core import Limits, ServerCore
    from sat_models.serving.drawings import Observer
    from sat_models.serving.studio import Studio
    from sat_models.zoo import VLM
    from sat_models.zoo.open_painter import ImagePainter

_OF_TALKING = (
    "max_batch", "keep_prefixes", "prefix_memory", "prompt_piece", "max_new_tokens", "timeout", "max_images",
    "allow_images_from",
)  # fmt: skip
_OF_DRAWING = ("painter_quant", "quant_text", "keep", "draw_timeout", "max_drawings")


def add_models_flags(parser: argparse.ArgumentParser) -> None:
    """Which models; page and API share these."""
    add_model_flags(parser)
    draws = parser.add_argument_group("a model that draws")
    flag(
        draws, "painter", metavar="NAME_OR_PATH",
        help="it, beside the model that talks; to serve it alone name it with --from_pretrained",
    )  # fmt: skip
    flag(draws, "painter_quant", type=int, choices=(4, 8), help="quantise the linears of --painter to 4 or 8 bits")
    flag(draws, "quant_text", type=int, choices=(4, 8), help="the same of its text encoder")
    flag(
        draws, "keep", choices=("all", "model", "none"),
        help="what of it stays in memory between its steps: every part, the transformer, or none (default: model)",
    )  # fmt: skip
    flag(draws, "draw_timeout", type=float, default=1800.0, help="seconds for one request (default: %(default)s)")
    flag(draws, "max_drawings", type=positive, default=4, help="images in one request (default: %(default)s)")


@dataclass(frozen=True)
class Models:
    """What is served. One of the two is there at least.

    Attributes:
        vlm, engine: what talks, and what answers its questions.
        names: what clients may call it, its own name first.
        painter, painter_names: what draws.
    """

    vlm: VLM | None = None
    engine: SharedEngine | None = None
    names: tuple[str, ...] = ()
    painter: ImagePainter | None = None
    painter_names: tuple[str, ...] = ()

    @property
    def named(self) -> str:
        """Their own names."""
        return " and ".join(names[0] for names in (self.names, self.painter_names) if names)

    def core(self, limits: Limits, **how: Any) -> ServerCore | None:
        """The queue of the one that talks; `how` are further arguments of `ServerCore`."""
        from sat_models.serving.core import ServerCore

        return None if self.vlm is None else ServerCore(self.vlm, self.engine, names=self.names, limits=limits, **how)

    def studio(self, args: argparse.Namespace, observer: Observer | None = None) -> Studio | None:
        """The queue of the one that draws.

        Raises:
            CheckpointError, MissingPackageError: a part of it is missing.
        """
        from sat_models.serving.drawings import DrawingLimits
        from sat_models.serving.studio import Studio

        if self.painter is None:
            return None
        limits = DrawingLimits(most=args.max_drawings, seconds=args.draw_timeout, max_waiting=args.max_waiting)
        return Studio(self.painter, names=self.painter_names, limits=limits, observer=observer)


def load(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Models:
    """The models that the flags name, on every process.

    Raises:
        ConfigError: a flag of a kind of model that is not served, or a painter under torchrun.
        ZooError: as `load_pretrained`.
    """
    from sat_models.runtime import setup_logging

    setup_logging(logging.INFO)
    alone = args.painter is None and _draws(args.from_pretrained)
    if alone:
        _refuse_given(parser, args, _OF_TALKING, f"{args.from_pretrained} draws; for one that talks")
        return Models(painter=_painter(args, args.from_pretrained, loading(args)), painter_names=_names(args))
    if args.painter is None:
        _refuse_given(parser, args, _OF_DRAWING, "nothing that draws is named; beside --painter")
        return _talking(args)
    how = {"device": args.device, "dtype": args.dtype, "quant": args.painter_quant}
    painter = _painter(args, args.painter, how)
    talking = _talking(args)
    return Models(talking.vlm, talking.engine, talking.names, painter, _called(str(args.painter)))


def _talking(args: argparse.Namespace) -> Models:
    from sat_models.serving.chat import shared_engine
    from sat_models.zoo import load_pretrained

    vlm = load_pretrained(args.from_pretrained, **loading(args))
    prefix_bytes = int(args.prefix_memory * 2**30)
    engine = shared_engine(vlm, keep_prefixes=args.keep_prefixes, prefix_bytes=prefix_bytes)
    return Models(vlm, engine, _names(args))


def _painter(args: argparse.Namespace, name: str, how: dict[str, Any]) -> ImagePainter:
    from sat_models.zoo import load_pretrained
    from sat_models.zoo.open_painter import ImagePainter

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"'{name}' draws, and a server draws in one process; start it without torchrun (scripts/cli_demo_image.py "
            "draws over several)"
        )
    painter = load_pretrained(name, **{**how, "task": "drawing"}, keep=args.keep, quant_text=args.quant_text)
    if not isinstance(painter, ImagePainter):
        raise ConfigError(f"'{name}' is a part that another model goes on with; name that one, coglm")
    return painter


def _draws(name: str) -> bool:
    from sat_models.zoo import load_config

    try:
        return load_config(name).TASK != "dialogue"
    except ZooError:
        return False  # loading it says what is wrong


def _refuse_given(
    parser: argparse.ArgumentParser, args: argparse.Namespace, names: Collection[str], reason: str
) -> None:
    if given := [name for name in names if getattr(args, name, None) != parser.get_default(name)]:
        raise ConfigError(f"{reason} there are {', '.join(f'--{name}' for name in given)}; leave them out")


def _names(args: argparse.Namespace) -> tuple[str, ...]:
    """As asked for, else as the model was loaded."""
    return tuple(getattr(args, "served_model_name", None) or ()) or _called(str(args.from_pretrained))


def _called(given: str) -> tuple[str, ...]:
    """A name as it is; a path by its last part, too."""
    return tuple(dict.fromkeys((Path(given).name if "/" in given or Path(given).exists() else given, given)))


def limits_of(args: argparse.Namespace) -> Limits:
    """Of the model that talks."""
    from sat_models.serving.core import Limits

    return Limits(
        max_new_tokens=args.max_new_tokens, seconds=args.timeout, max_rows=args.max_batch,
        max_waiting=args.max_waiting, prompt_piece=args.prompt_piece,
        max_images=getattr(args, "max_images", Limits.max_images),
    )  # fmt: skip


def closing(core: ServerCore | None, studio: Studio | None, *, grace: float = 0.0) -> Callable[[], None]:
    """What ends both queues, after `grace` seconds for what is at hand."""

    def close() -> None:
        for queue in filter(None, (core and core.scheduler, studio)):
            queue.close(grace)

    return close
