"""Write an article with images (InternLM-XComposer2): the model writes it, says where images belong, and chooses them.

The result is Markdown; `--json` prints one line for programs instead: {"sections": [{"text", "image"}]}.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from sat_models.errors import ConfigError, run_script
from sat_models.flags import add_model_flags, add_sampling_flags, check_numbers, flag, loading, sampling_options

MODEL = "internlm-xcomposer2-7b"


def make_parser() -> argparse.ArgumentParser:
    """Its flags; the defaults of sampling are those of the original's demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("instruction", help="what the article is about")
    parser.add_argument("images", nargs="*", type=Path, help="images to place in it; they stand before the instruction")
    add_model_flags(parser)
    add_sampling_flags(parser, max_new_tokens=2048, temperature=1.0, top_p=0.8, top_k=40)
    flag(parser, "num_images", type=int, help="how many to place (default: as many as the model likes)")
    flag(parser, "output", type=Path, metavar="FILE", help="Markdown file to write (default: the terminal)")
    parser.add_argument("--json", action="store_true", help="one JSON line instead of Markdown")
    parser.set_defaults(from_pretrained=MODEL, repetition_penalty=1.005)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run it. Returns the exit code."""
    args = make_parser().parse_args(argv)
    check_numbers(args, {"max_new_tokens": 1, **({"num_images": 1} if args.num_images is not None else {})})
    if args.version is not None:
        raise ConfigError("--version is not for articles, which have prompts of their own; leave it out")
    from sat_models import runtime
    from sat_models.files import write_text
    from sat_models.processing.image import load_image
    from sat_models.serving.composing import as_markdown, compose
    from sat_models.zoo import load_pretrained

    runtime.setup_logging()
    options, arguments = sampling_options(args), loading(args)
    images = [load_image(path) for path in args.images]  # before minutes go into loading weights
    vlm = load_pretrained(args.from_pretrained, **arguments)
    article = compose(vlm, args.instruction, images, options=options, num_images=args.num_images)
    named = [(section.text, None if section.image is None else str(args.images[section.image])) for section in article]
    if args.json:
        text = json.dumps({"sections": [{"text": said, "image": image} for said, image in named]}, ensure_ascii=False)
    else:
        text = as_markdown(named)
    if runtime.rank() == 0:
        if args.output is None:
            print(text)
        else:
            write_text(args.output, text + "\n")
    return 0


def command() -> None:
    """The console command `sat-compose`."""
    run_script(main)
