"""Trains the tokenizer of cogvlm-tiny on text of the synthetic world."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sat_models.errors import run_script
from sat_models.flags import check_numbers
from sat_models.shapes.tokenizer import train_tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="file to write, usually named tokenizer.model")
    parser.add_argument("--vocab-size", type=int, default=576, help="number of pieces (default: %(default)s)")
    parser.add_argument("--count", type=int, default=4000, help="pictures to take text from (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    check_numbers(args, {"vocab_size": 1, "count": 1})
    train_tokenizer(args.output, vocab_size=args.vocab_size, count=args.count, seed=args.seed)
    print(f"wrote {args.output}")
    return 0


def command() -> None:
    """The console command `sat-train-tokenizer`, and `scripts/train_tokenizer.py`."""
    run_script(main)
