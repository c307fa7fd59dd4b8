"""Describe many pictures: a folder or a JSONL file in, a JSONL file out. Started again, it goes on where it was.

What made the answers stands beside them in OUTPUT.settings.json: another model, prompt style or sampling wants another
output. Pictures and questions that changed are answered anew. One run at a time writes to an output.

Under torchrun the pictures are shared out: `torchrun --standalone --nproc-per-node=8 scripts/caption.py pictures/ …`;
`--model_parallel_size 2` splits each model over two of the processes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sat_models.errors import run_script
from sat_models.flags import (
    add_constraint_flags,
    add_model_flags,
    add_sampling_flags,
    add_scores_flag,
    check_numbers,
    constraint_of,
    flag,
    loading,
    sampling_options,
)


def make_parser() -> argparse.ArgumentParser:
    """Its flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of pictures, or JSONL with 'image' and, if wanted, 'query'")
    parser.add_argument("output", type=Path, help="JSONL: the input's fields, 'text' and 'finish_reason', or 'error'")
    add_model_flags(parser)
    flag(parser, "query", default="Describe this image.", help="default: %(default)s")
    flag(parser, "batch_size", type=int, default=16, help="answers at a time (default: %(default)s)")
    add_sampling_flags(parser, max_new_tokens=256)
    add_scores_flag(parser)
    add_constraint_flags(parser)
    flag(parser, "model_parallel_size", type=int, default=1, help="processes that share one model, under torchrun")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    args = make_parser().parse_args(argv)
    check_numbers(args, {"batch_size": 1, "max_new_tokens": 1, "model_parallel_size": 1})
    from sat_models import runtime
    from sat_models.checkpoint.lock import FileLock
    from sat_models.evaluation.identity import model_identity
    from sat_models.serving.bulk import caption, decoding_of, prepare
    from sat_models.zoo import load_pretrained

    runtime.setup_logging()
    options, arguments, constraint = sampling_options(args), loading(args), constraint_of(args)
    runtime.init_distributed(runtime.choose_device(args.device))
    runtime.init_model_parallel(args.model_parallel_size)
    how = {"scores": args.scores, "constraint": constraint}
    settings = decoding_of(options, args.version, **how)
    runtime.in_step(lambda: prepare(args.source, args.output, args.query, settings))  # before weights are read
    lock = runtime.in_step(lambda: FileLock(args.output, "another run") if runtime.rank() == 0 else None)
    vlm = load_pretrained(args.from_pretrained, **arguments)
    made_by = runtime.in_step(lambda: model_identity(vlm, args.from_pretrained) if runtime.rank() == 0 else {})
    written, failed = caption(
        vlm, args.source, args.output, query=args.query, options=options, version=args.version,
        max_rows=args.batch_size, **how, made_by=made_by,
    )  # fmt: skip
    if lock is not None:
        lock.release()
        print(f"{written} written to {args.output}, {failed} of them errors", file=sys.stderr)
    return 1 if failed else 0


def command() -> None:
    """The console command `sat-caption`."""
    run_script(main)
