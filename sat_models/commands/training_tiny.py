"""What the commands that train the bundled models share: flags of a run, and its start."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sat_models.flags import check_numbers, flag

if TYPE_CHECKING:
    import torch

Recipe = TypeVar("Recipe")


def parse_run(parser: argparse.ArgumentParser, argv: Sequence[str] | None, **stages: str) -> argparse.Namespace:
    """Read and check the flags of a run.

    Args:
        parser: with what is the command's own.
        stages: help of further flags that count steps or samples, by name.

    Raises:
        ConfigError: a number that is out of its range.
    """
    flag(parser, "steps", type=int, help="total steps of both stages; the learning rate falls at the end")
    flag(parser, "decay_steps", type=int, help="length of that fall")
    for name, what in stages.items():
        flag(parser, name, type=int, help=what)
    flag(parser, "learning_rate", type=float)
    flag(parser, "seed", type=int)
    flag(parser, "bf16", action="store_true", help="products in bf16: faster where the processor has units")
    flag(parser, "save_every", type=int, default=250, help="steps (default: %(default)s)")
    flag(parser, "threads", type=int, help="CPU threads")
    flag(parser, "device", default="auto")
    args = parser.parse_args(argv)
    least = {"steps": 1, "decay_steps": 0, "batch": 1, "save_every": 1, "threads": 1}
    check_numbers(args, {**dict.fromkeys(stages, 0), **least}, above={"learning_rate": 0})
    return args


def start(args: argparse.Namespace, kind: type[Recipe]) -> tuple[torch.device, Recipe]:
    """The device of a run, ready, and its recipe."""
    import torch

    from sat_models import runtime

    device = torch.device(runtime.choose_device(args.device))
    if args.threads:
        torch.set_num_threads(args.threads)
    runtime.setup_logging()
    runtime.init_distributed(device)
    runtime.init_model_parallel(1)
    names = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    chosen: dict[str, Any] = {k: v for k, v in vars(args).items() if k in names and v is not None}
    return device, kind(**chosen)
