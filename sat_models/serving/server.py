"""The HTTP server as a program: flags, the model on all processes, uvicorn on the first."""

from __future__ import annotations

import argparse
import math
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sat_models.errors import ConfigError, MissingPackageError, ZooError, complain
from sat_models.flags import flag, positive
from sat_models.serving.models import Models, add_models_flags, closing, limits_of, load

if TYPE_CHECKING:
    from sat_models.generation.ranks import SharedEngine


def add_serving_flags(parser: argparse.ArgumentParser) -> None:
    """Which models, and how many requests; page and API share these."""
    add_models_flags(parser)
    flag(parser, "max_batch", type=positive, default=16, help="requests answered at a time (default: %(default)s)")
    flag(
        parser, "keep_prefixes", type=count, default=16,
        help="answers whose cache is kept for requests that begin alike: the same picture, the same conversation; 0: "
        "none (default: %(default)s)",
    )  # fmt: skip
    flag(
        parser, "prefix_memory", type=gibibytes, default=2.0, metavar="GIB",
        help="most memory for them on each process, beside that of running answers (default: %(default)s)",
    )  # fmt: skip
    flag(parser, "max_waiting", type=positive, default=256, help="requests in the queue (default: %(default)s)")
    flag(
        parser, "prompt_piece", type=positive, default=256,
        help="tokens of a long prompt computed between two steps of running answers: few for short pauses and later "
        "first tokens (default: %(default)s)",
    )  # fmt: skip
    flag(parser, "max_new_tokens", type=positive, default=1024, help="longest answer in tokens (default: %(default)s)")
    flag(parser, "timeout", type=float, default=300.0, help="seconds for one request (default: %(default)s)")


def make_parser() -> argparse.ArgumentParser:
    """All flags of the API server."""
    parser = argparse.ArgumentParser(
        description="Serve a vision-language model with OpenAI's chat API, a painter with its images API, or both.",
        allow_abbrev=False,
    )
    add_serving_flags(parser)
    flag(parser, "host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    flag(parser, "port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    flag(parser, "served_model_name", nargs="+", metavar="NAME", help="what clients call it (default: as loaded)")
    flag(parser, "api_key", nargs="+", default=[], metavar="KEY", help="ask for one of these (also: SAT_API_KEYS)")
    flag(
        parser, "allow_images_from", nargs="+", default=[], metavar="HOST",
        help="fetch http(s) pictures from these hosts (host, host:port; '*': any public one). Private addresses are "
        "refused unless given as an IP address here. Default: data: URLs only",
    )  # fmt: skip
    flag(
        parser, "allow_origin", nargs="+", default=[], metavar="ORIGIN",
        help="web pages whose scripts may call, such as https://chat.example.org ('*': any). Default: none",
    )  # fmt: skip
    flag(parser, "max_images", type=positive, default=4, help="pictures in one request (default: %(default)s)")
    flag(parser, "grace", type=positive, default=30, help="seconds that running answers have at shutdown")
    return parser


def count(text: str) -> int:
    """A whole number from 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    return number


def gibibytes(text: str) -> float:
    """A number from 0."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no size of memory in GiB")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until stopped.

    Returns:
        Exit code: 0; 1 if the processes of a split model lost each other; 2 for what the user can mend.
    """
    parser = make_parser()
    try:
        return _serve(parser, parser.parse_args(argv))
    except ZooError as error:
        complain(error)
        return 2


def _serve(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    require_packages("fastapi", "uvicorn", "prometheus_client", purpose="The API server")
    leads = int(os.environ.get("RANK", "0")) == 0
    listening = listen(args.host, args.port) if leads else None
    models = load(parser, args)
    return on_ranks(models.engine, lambda: _serve_http(args, models, listening))


def on_ranks(engine: SharedEngine | None, front: Callable[[], int]) -> int:
    """Runs `front` on the first process while the others follow; all end together. Without an engine there is one.

    The others leave ending to the first: a signal that the launcher sends to all must not cut off answers.
    """
    if engine is None:
        return front()
    if engine.leads:
        try:
            code = front()
        finally:
            engine.stop()
    else:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        engine.follow()
        code = 0
    engine.leave()
    return code


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, taken before minutes go into loading weights.

    Raises:
        ConfigError: the address is not of this machine, or the port is in use.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--host {host} --port {port} cannot be listened on ({error}). Choose another with --port."
        ) from error


def require_packages(*names: str, purpose: str) -> None:
    """Raises MissingPackageError for the first that is not installed."""
    from importlib.util import find_spec

    for name in names:
        if find_spec(name) is None:
            raise MissingPackageError(name, "serve", purpose)


def _serve_http(args: argparse.Namespace, models: Models, listening: socket.socket) -> int:
    import uvicorn

    from sat_models.serving.api import create_app
    from sat_models.serving.images import ImagePolicy
    from sat_models.serving.metrics import DrawingMetrics, Metrics

    lost: list[bool] = []

    def on_fatal() -> None:
        lost.append(True)
        server.should_exit = True

    talking = Metrics() if models.vlm else None
    drawing = DrawingMetrics(talking.registry if talking else None) if models.painter else None
    policy = ImagePolicy(hosts=tuple(args.allow_images_from))
    core = models.core(limits_of(args), image_policy=policy, observer=talking, on_fatal=on_fatal)
    studio = models.studio(args, observer=drawing)
    keys = [*args.api_key, *os.environ.get("SAT_API_KEYS", "").split()]
    app = create_app(
        core, talking or drawing, studio=studio, keys=keys, origins=args.allow_origin,
        on_shutdown=closing(core, studio),
    )  # fmt: skip
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=args.grace)
    server = uvicorn.Server(config)
    host, port = listening.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    for name in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises it once more when it is done; let that pass
        signal.signal(name, lambda *_: setattr(server, "should_exit", True))
    print(f"Serving {models.named} on http://{address}:{port}/v1", flush=True)
    server.run(sockets=[listening])
    return 1 if lost else 0
