"""Train the embedded model `cogvlm-tiny` from random weights; run again to go on where it stopped.

Writes the weights in SAT layout to OUTPUT/cogvlm-tiny, which `--from_pretrained` takes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sat_models.commands.training_tiny import parse_run, start
from sat_models.errors import run_script
from sat_models.flags import flag

NAME = "cogvlm-tiny"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag(parser, "output", type=Path, default=Path("runs/cogvlm-tiny"), help="states, metrics and weights")
    return parse_run(parser, argv, tower_steps="steps of the first stage", batch="pictures per step")


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    args = parse_args(argv)
    from sat_models import registry
    from sat_models.config import read_json
    from sat_models.models.cogvlm.config import CogVLMConfig
    from sat_models.processing.tokens import SentencePieceTokenizer
    from sat_models.shapes.recipe import TinyRecipe
    from sat_models.shapes.training import export_tiny, train_tiny

    device, recipe = start(args, TinyRecipe)
    config = CogVLMConfig.from_dict(read_json(registry.config_path(NAME)))
    tokenizer_file = registry.bundled_folder(NAME) / "tokenizer.model"
    tokenizer = SentencePieceTokenizer.from_file(tokenizer_file)
    engine = train_tiny(config, tokenizer, recipe, args.output, device=device, save_every=args.save_every)
    print("weights:", export_tiny(engine, config, tokenizer_file, args.output))
    return 0


def command() -> None:
    """The console command `sat-train-tiny`, and `scripts/train_tiny.py`."""
    run_script(main)
