"""Merge LoRA into its base model's weights.

PATH is what training wrote: an adapter (adapter.safetensors, or its folder), or weights with the matrices beside them,
also those of the original scripts. Runs on the CPU in one process, file to file; any number of model-parallel parts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_models.errors import run_script
from sat_models.flags import refuse_unused


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from_pretrained", "--from-pretrained", required=True, metavar="PATH")
    parser.add_argument(
        "--base", metavar="NAME_OR_PATH", help="base model of an adapter (default: the one that its header names)"
    )
    parser.add_argument("--output", type=Path, required=True, help="SAT folder to write")
    parser.add_argument("--mp", type=int, default=1, help="parts of the result (default: %(default)s)")
    parser.add_argument("--alpha", type=float, help="of matrices beside weights (default: their config's, else 1)")
    parser.add_argument("--dtype", help="of the weights: fp32, bf16, fp16 (default: as they are)")
    args = parser.parse_args()
    from sat_models.checkpoint.adapter import find_adapter

    is_adapter = find_adapter(args.from_pretrained) is not None
    used = {"from_pretrained", "output", "mp", "dtype", "base" if is_adapter else "alpha"}
    what = "an adapter, which says its alpha itself," if is_adapter else "weights (no adapter is there)"
    refuse_unused(parser, args, used, f"merging {args.from_pretrained}: {what}")
    return args


def main() -> int:
    args = parse_args()
    import torch

    from sat_models import runtime
    from sat_models.checkpoint.adapter import find_adapter, read_adapter
    from sat_models.checkpoint.find import find_checkpoint
    from sat_models.checkpoint.merge import merge_lora_checkpoint
    from sat_models.zoo import locate

    runtime.setup_logging()
    dtype = runtime.choose_dtype(args.dtype, torch.device("cpu")) if args.dtype else None
    file = find_adapter(args.from_pretrained)
    adapter = read_adapter(file) if file else None
    source = find_checkpoint(locate(args.base or (adapter.base_model if adapter else args.from_pretrained)))
    written = merge_lora_checkpoint(source, args.output, adapter=adapter, alpha=args.alpha, size=args.mp, dtype=dtype)
    print(f"wrote {written} ({args.mp} part(s)). Try it: --from_pretrained {args.output}")
    return 0


if __name__ == "__main__":
    run_script(main)
