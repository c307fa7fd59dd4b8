"""Describe many pictures: a folder or a JSONL file in, a JSONL file out. Started again, it goes on where it was.

Under torchrun the pictures are shared out: `torchrun --standalone --nproc-per-node=8 scripts/caption.py pictures/ …`;
`--model_parallel_size 2` splits each model over two of the processes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_models.errors import run_script
from sat_models.flags import check_numbers
from sat_models.models.families import version_help


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of pictures, or JSONL with 'image' and, if wanted, 'query'")
    parser.add_argument("output", type=Path, help="JSONL: the input's fields, 'text' and 'finish_reason', or 'error'")
    parser.add_argument("--from_pretrained", "--from-pretrained", default="cogvlm-tiny", metavar="NAME_OR_PATH")
    parser.add_argument("--query", default="Describe this image.", help="default: %(default)s")
    parser.add_argument("--version", metavar="STYLE", help=version_help())
    parser.add_argument("--batch_size", "--batch-size", type=int, default=16, help="answers at a time (%(default)s)")
    parser.add_argument("--max_new_tokens", "--max-new-tokens", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="default: 0, greedy")
    parser.add_argument("--top_p", "--top-p", type=float, default=1.0)
    parser.add_argument("--top_k", "--top-k", type=int, default=0)
    parser.add_argument("--seed", type=int, help="of every answer, when not greedy")
    parser.add_argument("--model_parallel_size", "--model-parallel-size", type=int, default=1)
    parser.add_argument("--local_tokenizer", "--local-tokenizer", metavar="PATH")
    parser.add_argument("--quant", type=int, choices=[8, 4], help="bits per weight")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    check_numbers(args, {"batch_size": 1, "model_parallel_size": 1})
    return args


def main() -> int:
    args = parse_args()
    from sat_models import runtime
    from sat_models.generation.sampling import SamplingOptions
    from sat_models.serving.bulk import caption
    from sat_models.zoo import load_pretrained

    runtime.setup_logging()
    options = SamplingOptions(
        max_new_tokens=args.max_new_tokens, temperature=args.temperature, top_p=args.top_p, top_k=args.top_k,
        seed=args.seed,
    )  # fmt: skip
    runtime.init_distributed(runtime.choose_device(args.device))
    runtime.init_model_parallel(args.model_parallel_size)
    vlm = load_pretrained(
        args.from_pretrained, device=args.device, dtype=args.dtype, local_tokenizer=args.local_tokenizer,
        quant=args.quant,
    )  # fmt: skip
    written, failed = caption(
        vlm, args.source, args.output, query=args.query, options=options, version=args.version,
        max_rows=args.batch_size,
    )  # fmt: skip
    if runtime.rank() == 0:
        print(f"{written} written to {args.output}, {failed} of them errors", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    run_script(main)
