"""This project beside transformers, OpenVINO and llama.cpp: the same weights, text alone, engines asked in turn.

Each engine runs in an interpreter of its own, which has its packages; the project needs none of them. What an engine
reads is made in the folder of the model, once. Measure where nothing else runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sat_models.bench.peers.driver import FORMS, KNOWN, OURS, Figures, Peer, PeerError
from sat_models.errors import ConfigError, ZooError, run_script
from sat_models.files import check_place
from sat_models.flags import check_numbers, flag
from sat_models.sampling.sizes import size_of

if TYPE_CHECKING:
    from sat_models.bench.peers.drawing import Drawn


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read and check the flags. Raises ConfigError."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag(parser, "folder", type=Path, default=Path("peers-model"), help="of the model (default: %(default)s)")
    parser.add_argument(
        "--peers", nargs="*", metavar="NAME=PYTHON", default=["transformers", "openvino", "llama.cpp"],
        help="engines and the interpreters that have them, such as openvino=/path/to/python (default: transformers, "
        "openvino and llama.cpp in this interpreter); NAME=PYTHON,WORKER.py is an engine with a worker of yours",
    )  # fmt: skip
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    flag(parser, "contexts", type=int, nargs="+", default=[300, 1300], help="tokens of a prompt (default: 300 1300)")
    flag(parser, "new_tokens", type=int, default=65, help="of each answer (default: %(default)s)")
    flag(parser, "repeats", type=int, default=5, help="default: %(default)s; of training 2 are enough")
    flag(parser, "threads", type=int, default=os.cpu_count(), help="of each engine (default: all cores)")
    flag(parser, "train", action="store_true", help="a LoRA beside transformers and peft, in the place of answers")
    flag(parser, "draw", action="store_true", help="a painter beside diffusers, in the place of answers")
    flag(parser, "size", default="384x384", metavar="WIDTHxHEIGHT", help="of its images (default: %(default)s)")
    flag(parser, "steps", type=int, default=5, help="of its sampler (default: %(default)s)")
    flag(
        parser, "diffusers", default=sys.executable, metavar="PYTHON",
        help="the interpreter that has diffusers and transformers (default: this one)",
    )  # fmt: skip
    flag(parser, "output", type=Path, help="JSON")
    args = parser.parse_args(argv)
    check_numbers(args, {"contexts": 2, "new_tokens": 2, "repeats": 1, "threads": 1, "steps": 3})
    args.size = size_of(args.size, "--size")
    args.peers = dict(map(_peer, [OURS, *args.peers]))
    return args


def _peer(given: str) -> tuple[str, Peer]:
    name, _, place = given.partition("=")
    python, _, worker = place.partition(",")
    if worker:
        return name, Peer(name, Path(worker), python)
    if name not in KNOWN:
        raise ConfigError(f"--peers names '{name}'; known: {', '.join(KNOWN)} (or NAME=PYTHON,WORKER.py)")
    return name, dataclasses.replace(KNOWN[name], python=python) if python else KNOWN[name]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Exit code 0; 1 if an engine could not be measured."""
    args = parse_args(argv)
    from sat_models import runtime

    runtime.setup_logging()
    if args.output:
        check_place(args.output)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {args.threads} threads each; load {os.getloadavg()[0]:.1f}")
    try:
        rows, shown = drawings(args) if args.draw else of_tokens(args)
    except PeerError as error:
        raise ZooError(f"this project could not be measured: {error}") from error
    print(shown)
    if args.output:
        args.output.write_text(json.dumps(list(map(dataclasses.asdict, rows)), indent=2) + "\n", encoding="utf-8")
    return 1 if any(row.note for row in rows) else 0


def of_tokens(args: argparse.Namespace) -> tuple[list[Figures], str]:
    """Answers or training, and their table. Raises PeerError."""
    from sat_models.bench.peers.driver import table

    rows = train(args) if args.train else answers(args)
    return rows, table(rows)


def drawings(args: argparse.Namespace) -> tuple[list[Drawn], str]:
    """A painter beside diffusers', and the table. Raises PeerError."""
    from sat_models.bench.peers import drawing

    other = drawing.peer(args.diffusers)
    drawing.make(args.folder, other)
    asked = drawing.Asked(args.size, args.steps, args.repeats, args.threads)
    rows: list[Drawn] = []
    for form in (form for form in args.forms if form in drawing.FORMS):
        rows += drawing.compare(args.peers[OURS], other, args.folder, form, asked)
    return rows, drawing.table(rows)


def answers(args: argparse.Namespace) -> list[Figures]:
    """Of all forms. Raises PeerError."""
    from sat_models.bench.peers.driver import compare, make_what_is_missing

    failed = make_what_is_missing(args.peers, args.folder)
    rows = [Figures(name, "", 0, note=reason) for name, reason in failed.items()]
    able = {name: peer for name, peer in args.peers.items() if name not in failed}
    for form in args.forms:
        rows += compare(
            able, args.folder, form, sorted(args.contexts), new=args.new_tokens, repeats=args.repeats,
            threads=args.threads,
        )  # fmt: skip
    return rows


def train(args: argparse.Namespace) -> list[Figures]:
    """Of a LoRA. Raises PeerError."""
    from sat_models.bench.peers import driver
    from sat_models.bench.peers.samples import write_samples
    from sat_models.processing.tokens import SentencePieceTokenizer

    able = {name: peer for name, peer in args.peers.items() if name in (OURS, "transformers")}
    failed = driver.make_what_is_missing(able, args.folder)
    able = {name: peer for name, peer in able.items() if name not in failed}
    tokenizer = Path(__file__).parents[1] / "assets" / "cogvlm-tiny" / "tokenizer.model"
    write_samples(args.folder, SentencePieceTokenizer.from_file(tokenizer), tokenizer)
    rows = [Figures(name, "", 0, note=reason) for name, reason in failed.items()]
    return [*rows, *driver.train(able, args.folder, repeats=args.repeats, threads=args.threads)]


def command() -> None:
    """The console command `sat-bench-peers`, and `scripts/bench_peers.py`."""
    run_script(main)
