"""The command that converts weights between SAT's layout and Hugging Face's, in any model-parallel size, dtype and
number of bits.

Runs on the CPU in one process, file to file. `--from_pretrained OUTPUT` takes the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from sat_models.errors import run_script


def make_parser() -> argparse.ArgumentParser:
    """Its flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--from", dest="source", required=True, metavar="NAME_OR_PATH",
        help="SAT or Hugging Face folder, step folder, .pt or .zip file, or a name of the zoo",
    )  # fmt: skip
    parser.add_argument("--to", required=True, choices=("sat", "hf"), help="form of the result")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--mp", type=int, default=1, help="parts of a SAT folder (default: %(default)s)")
    parser.add_argument("--dtype", help="of the weights: fp32, bf16, fp16 (default: as they are)")
    parser.add_argument("--merge-lora", metavar="ADAPTER", help="adapter file or folder to merge on the way")
    parser.add_argument("--quant", type=int, choices=(4, 8), help="quantise the linears of a SAT folder")
    parser.add_argument(
        "--quant-skip", nargs="+", default=(), metavar="PATTERN", help="linears that --quant leaves alone"
    )
    parser.add_argument(
        "--verify", action="store_true",
        help="compare the logits of both for a small made input; what differs is not kept",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert once. Returns the exit code."""
    args = make_parser().parse_args(argv)
    import torch

    from sat_models import runtime
    from sat_models.checkpoint.adapter import read_adapter
    from sat_models.checkpoint.convert import convert
    from sat_models.models.common.quantisation import Quantisation
    from sat_models.zoo.locate import locate

    runtime.setup_logging()
    written = convert(
        locate(args.source),
        args.to,
        args.output,
        size=args.mp,
        dtype=runtime.choose_dtype(args.dtype, torch.device("cpu")) if args.dtype else None,
        adapter=read_adapter(args.merge_lora) if args.merge_lora else None,
        quantisation=Quantisation.asked(args.quant, args.quant_skip),
        verify=args.verify,
    )
    checked = " Its logits equal those of the source." if args.verify else ""
    print(f"wrote {written}.{checked} Try it: --from_pretrained {args.output}")
    return 0


def command() -> None:
    """The console command `sat-convert`."""
    run_script(main)
