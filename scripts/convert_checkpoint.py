"""Convert weights between SAT's layout and Hugging Face's, in any model-parallel size, dtype and number of bits.

Runs on the CPU in one process, file to file. `--from_pretrained OUTPUT` takes the result.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_models.errors import run_script


def parse_args() -> argparse.Namespace:
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
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    import torch

    from sat_models import runtime
    from sat_models.checkpoint.adapter import read_adapter
    from sat_models.checkpoint.convert import convert
    from sat_models.models.quantisation import Quantisation
    from sat_models.zoo import locate

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


if __name__ == "__main__":
    run_script(main)
