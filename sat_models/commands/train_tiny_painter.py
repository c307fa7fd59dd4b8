"""Train the bundled painter `cogview-tiny` from random weights; run again to go on where it stopped.

Writes the weights in SAT layout to OUTPUT/cogview-tiny, which `--from_pretrained` takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sat_models.commands.training_tiny import parse_run, start
from sat_models.errors import run_script
from sat_models.flags import check_numbers, flag


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag(parser, "output", type=Path, default=Path("runs/cogview-tiny"), help="states, metrics and weights")
    args = parse_run(parser, argv, codec_steps="steps of the first stage", batch="images per step")
    check_numbers(args, {"seed": 0})
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    args = parse_args(argv)
    from sat_models import registry
    from sat_models.config import read_json
    from sat_models.models.cogview_tiny.config import CogViewTinyConfig
    from sat_models.shapes.painter_recipe import PainterRecipe
    from sat_models.shapes.painter_training import NAME, export_painter, train_painter

    device, recipe = start(args, PainterRecipe)
    config = CogViewTinyConfig.from_dict(read_json(registry.config_file(f"models/{NAME}.json")))
    engine = train_painter(config, recipe, args.output, device=device, save_every=args.save_every)
    print("weights:", export_painter(engine, config, args.output))
    return 0


def command() -> None:
    """The console command `sat-train-tiny-painter`, and `scripts/train_tiny_painter.py`."""
    run_script(main)
