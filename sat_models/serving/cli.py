"""The command line demo: flags, one question or a dialogue, and what is printed.

Imports nothing heavy before the flags are read, so `--help` answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sat_models.errors import ConfigError, ZooError

if TYPE_CHECKING:
    from sat_models.serving.chat import ChatSession

logger = logging.getLogger(__name__)

DEFAULT_MODEL = "cogvlm-tiny"
DEFAULT_MAX_LENGTH = 2048


def make_parser() -> argparse.ArgumentParser:
    """All flags of the demo; each is understood with `-` for `_`, too."""
    parser = argparse.ArgumentParser(
        description="Ask a vision-language model about a picture: one question with --query, else a dialogue.",
        allow_abbrev=False,
    )

    def flag(name: str, **kwargs: object) -> None:
        dashed = "--" + name.replace("_", "-")
        parser.add_argument(*dict.fromkeys(("--" + name, dashed)), dest=name, **kwargs)

    flag("from_pretrained", default=DEFAULT_MODEL, metavar="NAME_OR_PATH", help="model (default: %(default)s)")
    flag("version", metavar="{base,chat,vqa,chat_old}", help="prompt style (default: the model's own)")
    flag("local_tokenizer", metavar="PATH", help="tokenizer file, folder or Hugging Face repository")
    flag("max_length", type=int, help=f"tokens in all, prompt and image included (default: {DEFAULT_MAX_LENGTH})")
    flag("max_new_tokens", type=int, help="tokens of the answer (default: what max_length leaves)")
    flag("top_p", type=float, default=0.4, help="nucleus sampling (default: %(default)s)")
    flag("top_k", type=int, default=1, help="1 is greedy, 0 keeps all (default: %(default)s)")
    flag("temperature", type=float, default=0.8, help="0 is greedy (default: %(default)s)")
    flag("seed", type=int, help="of the sampling; the same seed gives the same answer")
    flag("quant", type=int, choices=(4, 8), help="quantise the weights to 4 or 8 bits while loading")
    flag("device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    dtype = parser.add_mutually_exclusive_group()
    for name in ("fp16", "bf16", "fp32"):
        dtype.add_argument(f"--{name}", dest="dtype", action="store_const", const=name, default="auto")
    language = parser.add_mutually_exclusive_group()
    language.add_argument("--english", dest="language", action="store_const", const="english", default="english")
    language.add_argument("--chinese", dest="language", action="store_const", const="chinese", help="Chinese interface")
    flag("stream_chat", action="store_true", help="print the answer while it is made")
    flag("no_prompt", action="store_true", help="send an empty question first")
    flag("image", metavar="FILE_OR_URL", help="the picture; without --query the dialogue starts with it")
    flag("query", metavar="TEXT", help="ask this one question and end")
    flag("json", action="store_true", help="print one JSON line: text, token_ids, finish_reason, boxes in pixels")
    flag("output", metavar="FILE", type=Path, help="where to save the picture with the answer's boxes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Returns:
        Exit code: 0; 2 for what the user can mend, which is said in one line on stderr; 130 when interrupted.
    """
    args = make_parser().parse_args(argv)
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        return _run(args)
    except ZooError as error:
        _complain(error)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(args: argparse.Namespace) -> int:
    one_shot = args.query is not None or (args.no_prompt and (args.json or args.image is not None))
    if args.json and not one_shot:
        raise ConfigError("--json prints one answer, so it needs a question: add --query TEXT (or --no_prompt).")
    with only_answers_on_stdout() as out:
        from sat_models.serving.chat import ChatSession, shared_engine

        options = _sampling_options(args)
        vlm = _load(args)
        engine = shared_engine(vlm)
        try:
            if not engine.leads:
                engine.follow()
                return 0
            if args.max_length is None:
                options = _default_length(options, vlm.processor.max_length)
            session = ChatSession(vlm, engine=engine, options=options, allow_empty_query=args.no_prompt)
            if one_shot:
                _answer_once(session, args, out)
            else:
                from sat_models.serving.dialogue import Dialogue

                Dialogue(session, args, out).run()
        finally:
            if engine.leads:
                engine.stop()
    return 0
