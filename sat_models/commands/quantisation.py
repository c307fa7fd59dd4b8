"""Print the table of docs/quantisation.md: size, logits and accuracy of a model in full precision, 8 and 4 bits."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sat_models.errors import run_script
from sat_models.flags import check_numbers


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of a call."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from_pretrained", "--from-pretrained", default="cogvlm-tiny", metavar="NAME_OR_PATH")
    parser.add_argument("--count", type=int, default=500, help="pictures, seven questions each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures (default: %(default)s)")
    parser.add_argument("--quant-skip", nargs="+", default=(), metavar="PATTERN", help="linears left in full precision")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args(argv)
    check_numbers(args, {"count": 1, "threads": 1})
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    args = parse_args(argv)
    import torch

    from sat_models.bench.quantised import quantisation_report

    if args.threads:
        torch.set_num_threads(args.threads)
    rows = quantisation_report(
        args.from_pretrained, count=args.count, seed=args.seed, quant_skip=args.quant_skip, device=args.device
    )
    for number, row in enumerate(rows):
        if number == 0:
            print(f"| weights | MB | logit error | same first token | right | {' | '.join(row.right_by_task)} |")
            print(f"|{'---|' * (5 + len(row.right_by_task))}")
        name = f"{row.bits} bits" if row.bits else "full"
        shares = [row.same_first_token, row.right, *row.right_by_task.values()]
        cells = [name, f"{row.megabytes:.2f}", f"{row.logit_error:.3f}", *(f"{100 * share:.1f}" for share in shares)]
        print(f"| {' | '.join(cells)} |", flush=True)
    return 0


def command() -> None:
    """The console command `sat-quantisation`, and `scripts/quantisation.py`."""
    run_script(main)
