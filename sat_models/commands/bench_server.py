"""Measure a server as its clients see it, through OpenAI's own client: ours, started here, or any at --url.

Clients ask, wait for their answer, and ask again, each time about an image of its own (--same_image: about one). Then
streams are measured alone and beside requests with new images (--every). Percentiles are over all requests of a row.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sat_models.errors import ConfigError, run_script
from sat_models.flags import DEFAULT_MODEL, check_numbers, flag


def parse_args(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Read and check the flags; the rest goes to the server that is started. Raises ConfigError."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        epilog="Other flags go to the server that is started: --quant 8, --max_batch 4, --keep_prefixes 0 and so on.",
    )  # fmt: skip
    flag(parser, "url", help="of a server that runs already, such as http://127.0.0.1:8000/v1 (default: start one)")
    flag(parser, "model", help=f"its name on that server (default: {DEFAULT_MODEL}, which is what is started)")
    flag(parser, "api_key", default="none", help="of that server")
    flag(parser, "image", type=Path, default=Path("examples/6.png"), help="what is asked about (default: %(default)s)")
    flag(parser, "query", default="Describe this image.", help="the question (default: %(default)s)")
    flag(parser, "same_image", action="store_true", help="each request sends the same image, which caches may know")
    flag(parser, "max_tokens", type=int, default=64, help="longest answer (default: %(default)s)")
    flag(parser, "clients", type=int, nargs="+", default=[1, 4, 16], help="of each row (default: 1 4 16)")
    flag(parser, "seconds", type=float, default=10.0, help="that a row takes (default: %(default)s)")
    flag(parser, "every", type=float, default=0.5, help="seconds between new images beside streams (default: 0.5)")
    args, others = parser.parse_known_args(argv)
    check_numbers(args, {"max_tokens": 1, "clients": 1}, above={"seconds": 0, "every": 0})
    if args.url and others:
        raise ConfigError(f"with --url no server is started that could read {' '.join(others)}")
    if not args.image.is_file():
        raise ConfigError(f"there is no image {args.image}; name one with --image")
    return args, others


@contextmanager
def started(model: str, flags: Sequence[str]) -> Iterator[str]:
    """The address of a server of ours on a free port of this machine, while the block runs.

    Raises:
        ConfigError: it ended before it served; what it said is on stderr.
    """
    program = "import sys; from sat_models.serving.server import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "--from_pretrained", model, "--port", "0", *flags]
    paths = [
        str(Path(__file__).parents[2]),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]  # a bare checkout works, too
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            found = next((found for line in process.stdout if (found := re.search(r"http\S+/v1", line))), None)
            if found is None:
                raise ConfigError("the server did not start; its message is above")
            yield found[0]
        finally:
            process.terminate()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Exit code 0; 1 if requests failed."""
    args, flags = parse_args(argv)
    from sat_models.bench.server_load import Question, check, measure, measure_arrivals, open_client, table

    model = args.model or DEFAULT_MODEL
    failed: list[str] = []
    with started(model, flags) if not args.url else _given(args.url) as url:
        client = open_client(url, args.api_key)
        image = Question(model, args.query, args.image, args.same_image, args.max_tokens)
        text = Question(model, args.query, None, max_tokens=args.max_tokens)
        check(measure(client, image, clients=1, seconds=0.5, first_number=10**7))  # a first answer warms the server
        rows = []
        for clients in args.clients:
            seen = measure(client, image, clients=clients, seconds=args.seconds, first_number=10**4 * clients)
            rows.append(seen.row(str(clients)))
            failed += seen.failed
        print(table(rows), flush=True)
        streams = max(args.clients)
        found = measure_arrivals(client, text, image, clients=streams, every=args.every, seconds=args.seconds)
        names = (f"{streams} of text, alone", f"{streams} of text, images coming", f"images, one in {args.every:g} s")
        print("\n" + table([seen.row(name) for seen, name in zip(found, names, strict=True)]))
        failed += [message for seen in found for message in seen.failed]
    for message in dict.fromkeys(failed):
        print(f"failed: {message}", file=sys.stderr)
    return 1 if failed else 0


@contextmanager
def _given(url: str) -> Iterator[str]:
    yield url


def command() -> None:
    """As a program."""
    run_script(main)
