"""Draw what scripts/evaluate.py wrote: bars of the scores, a gallery of true (green) and predicted (red) boxes, and
how right answers of each score are; print how well scores tell right answers from wrong ones."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sat_models.errors import ConfigError, run_script
from sat_models.evaluation.plots import calibration_table, grounding_gallery, reliability_plot, score_bars
from sat_models.flags import check_numbers


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="folders that scripts/evaluate.py wrote")
    parser.add_argument("--bars", type=Path, metavar="FILE", help="picture with the scores of all folders")
    parser.add_argument("--gallery", type=Path, metavar="FILE", help="picture with the boxes of the first folder")
    parser.add_argument("--reliability", type=Path, metavar="FILE", help="share right by score (evaluate --scores)")
    parser.add_argument("--calibration", action="store_true", help="print a Markdown table (evaluate --scores)")
    parser.add_argument("--count", type=int, default=12, help="pictures in the gallery (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=4, help="of the gallery (default: %(default)s)")
    args = parser.parse_args(argv)
    check_numbers(args, {"count": 1, "columns": 1})
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    args = parse_args(argv)
    if not (args.bars or args.gallery or args.reliability or args.calibration):
        raise ConfigError("nothing to draw: add --bars, --gallery or --reliability FILE, or --calibration for a table.")
    if args.bars:
        print(f"wrote {score_bars(args.folders, args.bars)}")
    if args.gallery:
        print(f"wrote {grounding_gallery(args.folders[0], args.gallery, count=args.count, columns=args.columns)}")
    if args.reliability:
        print(f"wrote {reliability_plot(args.folders, args.reliability)}")
    if args.calibration:
        print(calibration_table(args.folders))
    return 0


def command() -> None:
    """The console command `sat-plot-evaluation`, and `scripts/plot_evaluation.py`."""
    run_script(main)
