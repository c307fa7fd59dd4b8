"""Train the bundled painter `cogview-tiny` from random weights; run again to go on where it stopped.

Writes the weights in SAT layout to OUTPUT/cogview-tiny, which `--from_pretrained` takes.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sat_models.errors import run_script
from sat_models.flags import check_numbers, flag


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag(parser, "output", type=Path, default=Path("runs/cogview-tiny"), help="states, metrics and weights")
    flag(parser, "steps", type=int, help="total steps of both stages; the learning rate falls at the end")
    flag(parser, "decay_steps", type=int, help="length of that fall")
    flag(parser, "codec_steps", type=int, help="steps of the first stage")
    flag(parser, "batch", type=int, help="images per step")
    flag(parser, "learning_rate", type=float)
    flag(parser, "seed", type=int)
    flag(parser, "bf16", action="store_true", help="products in bf16: faster where the processor has units")
    flag(parser, "save_every", type=int, default=250, help="steps (default: %(default)s)")
    flag(parser, "threads", type=int, help="CPU threads")
    flag(parser, "device", default="auto")
    args = parser.parse_args(argv)
    least = {"steps": 1, "decay_steps": 0, "codec_steps": 0, "batch": 1, "save_every": 1, "threads": 1, "seed": 0}
    check_numbers(args, least, above={"learning_rate": 0})
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    args = parse_args(argv)
    import torch

    from sat_models import registry, runtime
    from sat_models.config import read_json
    from sat_models.models.cogview_tiny.config import CogViewTinyConfig
    from sat_models.shapes.painter_recipe import PainterRecipe
    from sat_models.shapes.painter_training import NAME, export_painter, train_painter

    device = torch.device(runtime.choose_device(args.device))
    if args.threads:
        torch.set_num_threads(args.threads)
    runtime.setup_logging()
    runtime.init_distributed(device)
    runtime.init_model_parallel(1)
    names = {f.name for f in dataclasses.fields(PainterRecipe)}
    recipe = PainterRecipe(**{k: v for k, v in vars(args).items() if k in names and v is not None})
    config = CogViewTinyConfig.from_dict(read_json(registry.config_file(f"models/{NAME}.json")))
    engine = train_painter(config, recipe, args.output, device=device, save_every=args.save_every)
    print("weights:", export_painter(engine, config, args.output))
    return 0


def command() -> None:
    """The console command `sat-train-tiny-painter`, and `scripts/train_tiny_painter.py`."""
    run_script(main)
