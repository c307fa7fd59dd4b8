"""Score a checkpoint. Task `shapes`: pictures of the synthetic world that `cogvlm-tiny` is taught, never trained on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_models.errors import ZooError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from_pretrained", "--from-pretrained", default="cogvlm-tiny", metavar="NAME_OR_PATH")
    parser.add_argument("--task", choices=["shapes"], default="shapes")
    parser.add_argument("--count", type=int, default=500, help="pictures (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the test pictures (default: %(default)s)")
    parser.add_argument(
        "--versions", nargs="+", default=["chat"], metavar="VERSION", help="prompt styles (default: chat)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--output", type=Path, help="folder for scores.json and predictions.jsonl")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    import torch

    from sat_models.evaluation.shapes import evaluate_shapes
    from sat_models.zoo import load_pretrained

    if args.threads:
        torch.set_num_threads(args.threads)
    vlm = load_pretrained(args.from_pretrained, device=args.device)

    def answer(questions: list) -> list[str]:
        return [
            vlm.generate(image, text, version=version, max_new_tokens=args.max_new_tokens).text
            for image, text, version in questions
        ]

    result = evaluate_shapes(answer, count=args.count, seed=args.seed, versions=args.versions)
    predictions = result.pop("predictions")
    result["decoding"] = {"temperature": 0.0, "max_new_tokens": args.max_new_tokens}
    print(json.dumps(result, indent=2))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "scores.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        lines = (json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions)
        (args.output / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ZooError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
