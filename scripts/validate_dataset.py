"""Look through training data: every problem with its file and line, a histogram of lengths, one sample with the trained
tokens marked. Exit code 0: all is well, 1: problems were found, 2: bad usage."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sat_models.errors import run_script
from sat_models.flags import check_numbers, refuse_unused
from sat_models.models.families import version_help


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)

    def flag(name: str, **kwargs: object) -> None:
        parser.add_argument(*dict.fromkeys(("--" + name, "--" + name.replace("_", "-"))), dest=name, **kwargs)

    parser.add_argument("data", type=Path, help=".json or .jsonl file, or folder")
    flag(
        "from_pretrained",
        metavar="NAME_OR_PATH",
        help="model whose tokenizer and picture size are used; needs no weights",
    )
    flag("local_tokenizer", metavar="PATH", help="tokenizer file, folder or Hugging Face repository")
    flag("version", metavar="STYLE", help=version_help())
    flag("max_length", type=int, help="longest sample in tokens, picture included (default: the model's context)")
    flag("format", metavar="{json,sft311k,captcha}", help="force a format instead of looking at the data")
    flag("prompt", help="question of captchas and captions (default: the format's own)")
    flag("image_root", type=Path, help="folder in which picture names are tried first")
    flag("ignore", nargs="+", default=[], metavar="KIND", help="kinds of problems to pass over, such as duplicate")
    flag("no_decode", action="store_true", help="only look whether pictures exist, do not read them")
    flag("most", type=int, default=50, help="problems to print one by one (default: %(default)s)")
    flag("json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    check_numbers(args, {"max_length": 1, "most": 0})
    if not args.from_pretrained:
        used = vars(args).keys() - {"local_tokenizer", "version", "max_length"}
        refuse_unused(parser, args, used, "a check without --from_pretrained")
    if args.json:
        refuse_unused(parser, args, vars(args).keys() - {"most"}, "--json")
    return args


def main() -> int:
    args = parse_args()
    from sat_models.training.validate import report_text, validate

    processor = None
    if args.from_pretrained:
        from sat_models.zoo import load_processor

        processor = load_processor(args.from_pretrained, local_tokenizer=args.local_tokenizer, version=args.version)
    report = validate(
        args.data,
        processor,
        max_length=args.max_length,
        format=args.format,
        prompt=args.prompt,
        image_root=args.image_root,
        ignore=args.ignore,
        decode_pictures=not args.no_decode,
        progress=sys.stderr.isatty(),
    )
    print(json.dumps(report.as_dict(), ensure_ascii=False) if args.json else report_text(report, most=args.most))
    return 0 if report.ok else 1


if __name__ == "__main__":
    run_script(main)
