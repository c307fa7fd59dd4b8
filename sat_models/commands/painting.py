"""What the commands that draw images and make films share: flags, and the size as it is typed."""

from __future__ import annotations

import argparse

from sat_models.flags import add_device_flags, flag
from sat_models.sampling.sizes import size_of


def add_painting_flags(parser: argparse.ArgumentParser, *, what: str) -> None:
    """How it is painted, and how the model is loaded.

    Args:
        what: "image" or "film", for the help.
    """
    flag(parser, "size", metavar="WIDTHxHEIGHT", help="in pixels, such as 1024x768 (default: the model's usual one)")
    flag(parser, "steps", type=int, help="of the sampler (default: the model's usual number)")
    flag(parser, "guidance", type=float, help="how closely the prompt is followed; 1 is not at all guided")
    flag(parser, "seed", type=int, help=f"the same seed gives the same {what} (default: one is drawn)")
    flag(parser, "quant", type=int, choices=(4, 8), help="quantise the transformer's linears to 4 or 8 bits")
    flag(parser, "quant_text", type=int, choices=(4, 8), help="the same of the text encoder")
    flag(
        parser, "keep", choices=("all", "model", "none"), default="model",
        help="what stays in memory between its steps: every part, the transformer, or none (default: %(default)s)",
    )  # fmt: skip
    add_device_flags(parser)
    parser.add_argument("--json", action="store_true", help="one JSON line instead of a sentence")


def size_asked(args: argparse.Namespace) -> tuple[int, int] | None:
    """Width and height of `--size`. Raises InputError."""
    return None if args.size is None else size_of(args.size, "--size")
