"""Writes pictures with their answers: of the synthetic world with a JSONL for fine-tuning, captchas whose file names
are the answers, with --boxes pictures whose objects are annotated in pixels, or, with --format, test pictures annotated
as a public benchmark is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sat_models.errors import run_script
from sat_models.flags import check_numbers, refuse_unused
from sat_models.shapes.box_forms import BOX_FORMS, write_boxes
from sat_models.shapes.captcha import write_captchas
from sat_models.shapes.dataset import DATASET_TASKS, write_dataset
from sat_models.shapes.public_formats import FORMATS, write_public_dataset

_ALWAYS = {"output", "count", "seed"}
_WORLD = {"task", "min_objects", "max_objects", "canonical", "image_prefix"}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write to; made where missing")
    parser.add_argument("--count", type=int, default=100, help="pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed writes the same files")
    tasks = (*DATASET_TASKS, "mixed", "captcha")
    parser.add_argument("--task", choices=tasks, default="mixed", help="mixed: each but captcha in turn")
    parser.add_argument("--format", choices=sorted(FORMATS), help="write test pictures in this public format instead")
    parser.add_argument(
        "--boxes", choices=sorted(BOX_FORMS), help="write boxes in pixels in this form, to fine-tune on"
    )
    parser.add_argument("--digits", type=int, default=4, help="of a captcha (default: %(default)s)")
    parser.add_argument("--min-objects", type=int, default=1, help="fewest objects in a picture (default: %(default)s)")
    parser.add_argument("--max-objects", type=int, default=3, help="most objects in a picture (default: %(default)s)")
    parser.add_argument("--canonical", action="store_true", help="documented wordings only, no paraphrases")
    parser.add_argument(
        "--image-prefix", default="", help="put before the file names in the JSONL (default: relative to the JSONL)"
    )
    args = parser.parse_args(argv)
    check_numbers(args, {"count": 1, "digits": 1})
    if args.boxes:
        refuse_unused(parser, args, _ALWAYS | {"boxes", "max_objects"}, f"--boxes {args.boxes}")
    elif args.format:
        refuse_unused(parser, args, _ALWAYS | {"format", "max_objects", "canonical"}, f"--format {args.format}")
    elif args.task == "captcha":
        refuse_unused(parser, args, _ALWAYS | {"task", "digits"}, "--task captcha")
    else:
        refuse_unused(parser, args, _ALWAYS | _WORLD, f"--task {args.task}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    args = parse_args(argv)
    if args.boxes:
        options = {"count": args.count, "seed": args.seed, "max_objects": args.max_objects}
        path = write_boxes(args.output, form=args.boxes, **options)
        print(f"wrote {args.count} pictures to {args.output / 'images'}, and {path}")
        return 0
    if args.format:
        files = write_public_dataset(
            args.output, layout=args.format, count=args.count, seed=args.seed, max_objects=args.max_objects,
            canonical=args.canonical,
        )  # fmt: skip
        print(f"wrote {args.count} pictures to {args.output / 'images'}, and {', '.join(map(str, files))}")
        return 0
    if args.task == "captcha":
        paths = write_captchas(args.output, count=args.count, digits=args.digits, seed=args.seed)
        print(f"wrote {len(paths)} captchas, the first {paths[0]}")
        return 0
    path = write_dataset(
        args.output,
        count=args.count,
        seed=args.seed,
        task=args.task,
        min_objects=args.min_objects,
        max_objects=args.max_objects,
        canonical=args.canonical,
        image_prefix=args.image_prefix,
    )
    print(f"wrote {args.count} pictures and {path}")
    return 0


def command() -> None:
    """The console command `sat-make-dataset`, and `scripts/make_dataset.py`."""
    run_script(main)
