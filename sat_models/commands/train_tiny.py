"""Train the embedded model `cogvlm-tiny` from random weights; run again to go on where it stopped.

Writes the weights in SAT layout to OUTPUT/cogvlm-tiny, which `--from_pretrained` takes.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sat_models.errors import run_script
from sat_models.flags import check_numbers

NAME = "cogvlm-tiny"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/cogvlm-tiny"), help="states, metrics and weights")
    parser.add_argument("--steps", type=int, help="total steps of both stages; the learning rate falls at the end")
    parser.add_argument("--decay-steps", type=int, help="length of that fall")
    parser.add_argument("--tower-steps", type=int, help="steps of the first stage")
    parser.add_argument("--batch", type=int, help="pictures per step")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--bf16", action="store_true", help="products in bf16: faster where the processor has units")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    least = {"steps": 1, "decay_steps": 0, "tower_steps": 0, "batch": 1, "save_every": 1, "threads": 1}
    check_numbers(args, least, above={"learning_rate": 0})
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    args = parse_args(argv)
    import torch

    from sat_models import registry, runtime
    from sat_models.config import read_json
    from sat_models.models.cogvlm.config import CogVLMConfig
    from sat_models.processing.tokens import SentencePieceTokenizer
    from sat_models.shapes.recipe import TinyRecipe
    from sat_models.shapes.training import export_tiny, train_tiny

    device = torch.device(runtime.choose_device(args.device))
    if args.threads:
        torch.set_num_threads(args.threads)
    runtime.setup_logging()
    runtime.init_distributed(device)
    runtime.init_model_parallel(1)
    names = {f.name for f in dataclasses.fields(TinyRecipe)}
    chosen = {k: v for k, v in vars(args).items() if k in names and v is not None}
    config = CogVLMConfig.from_dict(read_json(registry.config_path(NAME)))
    tokenizer_file = registry.bundled_folder(NAME) / "tokenizer.model"
    tokenizer = SentencePieceTokenizer.from_file(tokenizer_file)
    recipe = TinyRecipe(**chosen)
    engine = train_tiny(config, tokenizer, recipe, args.output, device=device, save_every=args.save_every)
    print("weights:", export_tiny(engine, config, tokenizer_file, args.output))
    return 0


def command() -> None:
    """The console command `sat-train-tiny`, and `scripts/train_tiny.py`."""
    run_script(main)
