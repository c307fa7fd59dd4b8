"""Writes pictures of the synthetic world and a JSONL of questions and answers, ready for fine-tuning."""

from __future__ import annotations

import argparse
from pathlib import Path

from sat_models.training.shapes_dataset import DATASET_TASKS, write_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write to; made where missing")
    parser.add_argument("--count", type=int, default=100, help="pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed writes the same files")
    parser.add_argument("--task", choices=(*DATASET_TASKS, "mixed"), default="mixed", help="mixed: each in turn")
    parser.add_argument("--min-objects", type=int, default=1, help="fewest objects in a picture (default: %(default)s)")
    parser.add_argument("--max-objects", type=int, default=3, help="most objects in a picture (default: %(default)s)")
    parser.add_argument("--canonical", action="store_true", help="documented wordings only, no paraphrases")
    parser.add_argument(
        "--image-prefix", default="", help="put before the file names in the JSONL (default: relative to the JSONL)"
    )
    args = parser.parse_args()
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


if __name__ == "__main__":
    main()
