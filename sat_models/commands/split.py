"""Split data into the folders train, valid and test: pictures named by their answers, SFT-311K folders, or JSON files.

Without arguments: `archive` -> `archive_split`. The document's sizes: --counts 8000 500 1500 --seed 2023.
Files are copied, and nothing is overwritten.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sat_models.errors import run_script


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the flags. Raises ConfigError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?", default=Path("archive"), help="data (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for the parts (default: SOURCE_split)")
    sizes = parser.add_mutually_exclusive_group()
    names = ("TRAIN", "VALID", "TEST")
    sizes.add_argument("--ratio", type=float, nargs=3, metavar=names, help="relative sizes (default: 0.8 0.05 0.15)")
    sizes.add_argument("--counts", type=int, nargs=3, metavar=names, help="sizes")
    parser.add_argument("--seed", type=int, default=2023, help="of the shuffling (default: %(default)s)")
    how = parser.add_mutually_exclusive_group()
    for name, text in (("move", "move the files"), ("link", "link to them (hard links where possible)")):
        how.add_argument(f"--{name}", dest="how", action="store_const", const=name, default="copy", help=text)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    args = parse_args(argv)
    from sat_models.training.split_files import DEFAULT_RATIO, split_dataset

    source: Path = args.source
    name = source.stem if source.is_file() else source.resolve().name
    output = args.output or source.parent / f"{name}_split"
    sizes = split_dataset(
        source,
        output,
        ratio=args.ratio or DEFAULT_RATIO,
        counts=args.counts,
        seed=args.seed,
        how=args.how,
        progress=sys.stderr.isatty(),
    )
    for part, size in sizes.items():
        print(f"{output / part}: {size}")
    return 0


def command() -> None:
    """The console command `sat-split`."""
    run_script(main)
