"""Look through training data: every problem with its file and line, a histogram of lengths, one sample with the trained
tokens marked. Exit code 0: all is well, 1: problems were found, 2: bad usage."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from sat_models.errors import run_script
from sat_models.flags import add_box_flags, add_name_flags, check_numbers, flag, refuse_unused


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the flags. Raises ConfigError."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)

    parser.add_argument("data", type=Path, help=".json or .jsonl file, or folder")
    add_name_flags(parser, default=None)
    flag(
        parser, "max_length", type=int, help="longest sample in tokens, picture included (default: the model's context)"
    )
    flag(parser, "format", help="force a format (docs/finetuning.md lists them) instead of looking at the data")
    flag(parser, "prompt", help="question of captchas and captions (default: the format's own)")
    flag(parser, "image_root", type=Path, help="folder in which picture names are tried first")
    add_box_flags(parser)
    flag(parser, "seed", type=int, default=1234, help="of what is asked about boxes; that of the run")
    flag(parser, "split", choices=("train", "val"), default="train", help="of data that hold both (default: train)")
    flag(parser, "draw", type=Path, metavar="DIR", help="write the pictures with their boxes drawn on them")
    flag(
        parser,
        "ignore",
        nargs="+",
        default=[],
        metavar="KIND",
        help="kinds of problems to pass over, such as duplicate",
    )
    flag(parser, "no_decode", action="store_true", help="only look whether pictures exist, do not read them")
    flag(parser, "most", type=int, default=50, help="problems to print one by one, and pictures to draw (default: 50)")
    flag(parser, "json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    check_numbers(args, {"max_length": 1, "most": 0})
    if not args.from_pretrained:
        used = vars(args).keys() - {"local_tokenizer", "version", "max_length", "hub"}
        refuse_unused(parser, args, used, "a check without --from_pretrained")
    if args.json:
        refuse_unused(parser, args, vars(args).keys() - (set() if args.draw else {"most"}), "--json")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    args = parse_args(argv)
    from sat_models.training.data_report import report_text
    from sat_models.training.grounding.asking import asking_from
    from sat_models.training.validate import validate

    processor = None
    if args.from_pretrained:
        from sat_models.zoo import load_processor

        processor = load_processor(args.from_pretrained, local_tokenizer=args.local_tokenizer, version=args.version)
    report = validate(
        args.data,
        processor,
        max_length=args.max_length,
        format=args.format,
        prompt=args.prompt,
        image_root=args.image_root,
        asking=asking_from(args.box_tasks, args.box_templates, seed=args.seed, prompt=args.prompt),
        split=args.split,
        draw=args.draw,
        most_drawn=args.most,
        ignore=args.ignore,
        decode_images=not args.no_decode,
        progress=sys.stderr.isatty(),
    )
    print(json.dumps(report.as_dict(), ensure_ascii=False) if args.json else report_text(report, most=args.most))
    return 0 if report.ok else 1


def command() -> None:
    """The console command `sat-validate`."""
    run_script(main)
