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
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sat_models.errors import ConfigError, ZooError, complain
from sat_models.flags import (
    add_constraint_flags,
    add_model_flags,
    add_sampling_flags,
    add_scores_flag,
    constraint_of,
    flag,
    loading,
    positive,
    sampling_options,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from sat_models.generation.ranks import SharedEngine
    from sat_models.serving.chat import ChatSession


def make_parser() -> argparse.ArgumentParser:
    """All flags of the demo; each is understood with `-` for `_`, too."""
    parser = argparse.ArgumentParser(
        description="Ask a vision-language model about a picture: one question with --query, else a dialogue.",
        allow_abbrev=False,
    )

    add_model_flags(parser)
    add_sampling_flags(parser, max_new_tokens=None, temperature=0.8, top_p=0.4, top_k=1)
    flag(parser, "max_length", type=int, help="tokens in all, prompt and image included (default: the model's context)")
    flag(
        parser, "rotary_table", choices=("model", "fp32"), default="model",
        help="rotary angles in the model's dtype, as it was trained, or in fp32 (default: %(default)s)",
    )  # fmt: skip
    language = parser.add_mutually_exclusive_group()
    language.add_argument("--english", dest="language", action="store_const", const="english", default="english")
    language.add_argument("--chinese", dest="language", action="store_const", const="chinese", help="Chinese interface")
    flag(parser, "stream_chat", action="store_true", help="print the answer while it is made")
    flag(parser, "max_tiles", type=positive, help="most tiles of a picture, for models that cut it (default: theirs)")
    flag(parser, "no_prompt", action="store_true", help="send an empty question first")
    flag(parser, "image", metavar="FILE_OR_URL", help="the picture; without --query the dialogue starts with it")
    flag(parser, "query", metavar="TEXT", help="ask this one question and end")
    flag(
        parser,
        "json",
        action="store_true",
        help="print one JSON line: text, token_ids, finish_reason, boxes (CogAgent: agent)",
    )
    add_scores_flag(parser)
    add_constraint_flags(parser)
    flag(parser, "output", metavar="FILE", type=Path, help="where to save the picture with the answer's boxes")
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
        complain(error)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(args: argparse.Namespace) -> int:
    one_shot = args.query is not None or (args.no_prompt and (args.json or args.image is not None))
    if args.json and not one_shot:
        raise ConfigError("--json prints one answer, so it needs a question: add --query TEXT (or --no_prompt).")
    if args.output is not None:
        from sat_models.processing.drawing import check_writable

        check_writable(args.output)
    arguments = loading(args)
    with only_answers_on_stdout():
        image = _image(args.image) if one_shot else None
        session, engine = _load(args, arguments)
    if engine.leads:
        try:
            if one_shot:
                _ask_once(session, args, image)
            else:
                _dialogue(session, args)
        finally:
            engine.stop()
    else:
        with only_answers_on_stdout():
            engine.follow()
    engine.leave()
    return 0


def _image(source: str | None) -> Image | None:
    """The picture of `--image`, read in front only; a bad one is found before minutes go into loading weights."""
    if source is None or _rank():
        return None
    from sat_models.processing.image import load_image

    return load_image(source)


def _load(args: argparse.Namespace, arguments: dict[str, Any]) -> tuple[ChatSession, SharedEngine]:
    """Everything heavy: torch, the model, and the session that talks to it."""
    from sat_models.runtime import setup_logging
    from sat_models.serving.chat import ChatSession, shared_engine

    setup_logging(logging.WARNING)
    options, constraint = sampling_options(args, max_length=args.max_length), constraint_of(args)
    from sat_models.zoo import load_pretrained

    vlm = load_pretrained(args.from_pretrained, rotary_table=args.rotary_table, **arguments)
    engine = shared_engine(vlm)
    return ChatSession(
        vlm, engine=engine, options=options, allow_empty_query=args.no_prompt, max_tiles=args.max_tiles,
        scores=args.scores, constraint=constraint,
    ), engine  # fmt: skip


def _ask_once(session: ChatSession, args: argparse.Namespace, image: Image | None) -> None:
    """`--query`: one question, its answer as text or as one JSON line; boxes are drawn if `--output` says where."""
    session.set_image(image)
    with only_answers_on_stdout() as out:
        show = partial(print, end="", flush=True, file=out) if args.stream_chat and not args.json else None
        answer = session.ask(args.query or "", stream=show)
        if args.json:
            print(json.dumps(answer.as_json()), file=out, flush=True)
        else:
            print("" if show else answer.text, file=out, flush=True)
            if args.scores:
                print(answer.scores_line(), file=out, flush=True)
    if answer.incomplete is not None and not args.json:
        print(answer.incomplete, file=sys.stderr)
    if args.output is not None:
        drawn = session.draw(answer, args.output)
        missing = "no boxes drawn" if not answer.boxes else "the warning says why"
        print(f"Boxes drawn in {drawn}" if drawn else f"{args.output} was not written: {missing}", file=sys.stderr)


def _dialogue(session: ChatSession, args: argparse.Namespace) -> None:
    from sat_models.serving.dialogue import Dialogue

    Dialogue(
        session,
        language=args.language,
        image=args.image,
        ask_first=args.no_prompt,
        stream=args.stream_chat,
        output=args.output,
    ).run()


@contextlib.contextmanager
def only_answers_on_stdout() -> Iterator[TextIO]:
    """Send whatever libraries print to stderr, C++ code included, and give a stream that is the real stdout."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # closed, or not a file at all
        yield sys.stdout
        return
    with os.fdopen(kept, "w", encoding="utf-8", errors="replace") as answers, contextlib.redirect_stdout(sys.stderr):
        os.dup2(2, 1)
        try:
            yield answers
        finally:
            sys.stdout.flush()
            answers.flush()
            os.dup2(answers.fileno(), 1)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))
