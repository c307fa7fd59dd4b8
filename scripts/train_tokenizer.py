"""Trains the tokenizer of cogvlm-tiny on text of the synthetic world."""

from __future__ import annotations

import argparse
from pathlib import Path

from sat_models.training.shapes_tokenizer import train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="file to write, usually named tokenizer.model")
    parser.add_argument("--vocab-size", type=int, default=576, help="number of pieces (default: %(default)s)")
    parser.add_argument("--count", type=int, default=4000, help="pictures to take text from (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train_tokenizer(args.output, vocab_size=args.vocab_size, count=args.count, seed=args.seed)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
