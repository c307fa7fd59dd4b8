"""Make one checkpoint of any model-parallel size from another: several parts into one, or one into several.

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
        "--from_pretrained", "--from-pretrained", required=True, metavar="NAME_OR_PATH",
        help="SAT folder, step folder, .pt or .zip file, or a name of the zoo",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="SAT folder to write")
    parser.add_argument("--mp", type=int, default=1, help="parts of the result (default: %(default)s)")
    parser.add_argument("--dtype", help="of the weights: fp32, bf16, fp16 (default: as they are)")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    import torch

    from sat_models import runtime
    from sat_models.checkpoint.find import find_checkpoint
    from sat_models.checkpoint.merge import merge_model
    from sat_models.zoo import locate

    runtime.setup_logging()
    dtype = runtime.choose_dtype(args.dtype, torch.device("cpu")) if args.dtype else None
    source = find_checkpoint(locate(args.from_pretrained))
    written = merge_model(source, args.output, size=args.mp, dtype=dtype)
    print(f"wrote {written} ({args.mp} part(s)). Try it: --from_pretrained {args.output}")
    return 0


if __name__ == "__main__":
    run_script(main)
