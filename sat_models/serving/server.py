"""The HTTP server as a program: flags, the model on all processes, uvicorn on the first."""

from __future__ import annotations

import argparse
import logging
import math
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sat_models.errors import ConfigError, MissingPackageError, ZooError, complain
from sat_models.flags import add_model_flags, flag, loading, positive

if TYPE_CHECKING:
    from sat_models.generation.ranks import SharedEngine
    from sat_models.zoo.vlm import VLM

logger = logging.getLogger(__name__)


def add_serving_flags(parser: argparse.ArgumentParser) -> None:
    """Which model, and how many requests; page and API share these."""
    add_model_flags(parser)
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
        description="Serve a vision-language model with OpenAI's chat API.", allow_abbrev=False
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
    args = make_parser().parse_args(argv)
    try:
        return _serve(args)
    except ZooError as error:
        complain(error)
        return 2


def _serve(args: argparse.Namespace) -> int:
    require_packages("fastapi", "uvicorn", "prometheus_client", purpose="The API server")
    leads = int(os.environ.get("RANK", "0")) == 0
    listening = listen(args.host, args.port) if leads else None
    vlm, engine = load(args)
    return on_ranks(engine, lambda: _serve_http(args, vlm, engine, listening))


def load(args: argparse.Namespace) -> tuple[VLM, SharedEngine]:
    """The model and its engine, on every process."""
    from sat_models.runtime import setup_logging
    from sat_models.serving.chat import shared_engine
    from sat_models.zoo import load_pretrained

    setup_logging(logging.INFO)
    vlm = load_pretrained(args.from_pretrained, **loading(args))
    prefix_bytes = int(args.prefix_memory * 2**30)
    return vlm, shared_engine(vlm, keep_prefixes=args.keep_prefixes, prefix_bytes=prefix_bytes)


def on_ranks(engine: SharedEngine, front: Any) -> int:
    """Runs `front` on the first process while the others follow; all end together.

    The others leave ending to the first: a signal that the launcher sends to all must not cut off answers.
    """
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


def served_names(args: argparse.Namespace) -> list[str]:
    """Names for the model that clients may use: as asked for, else as it was loaded (a path by its last part, too)."""
    if getattr(args, "served_model_name", None):
        return list(args.served_model_name)
    given = str(args.from_pretrained)
    return list(dict.fromkeys((Path(given).name if "/" in given or Path(given).exists() else given, given)))


def _serve_http(args: argparse.Namespace, vlm: VLM, engine: SharedEngine, listening: socket.socket) -> int:
    import uvicorn

    from sat_models.serving.api import create_app
    from sat_models.serving.core import Limits, ServerCore
    from sat_models.serving.images import ImagePolicy
    from sat_models.serving.metrics import Metrics

    metrics = Metrics()
    lost: list[bool] = []

    def on_fatal() -> None:
        lost.append(True)
        server.should_exit = True

    core = ServerCore(
        vlm,
        engine,
        names=served_names(args),
        limits=Limits(
            max_new_tokens=args.max_new_tokens,
            max_images=args.max_images,
            seconds=args.timeout,
            max_rows=args.max_batch,
            max_waiting=args.max_waiting,
            prompt_piece=args.prompt_piece,
        ),
        image_policy=ImagePolicy(hosts=tuple(args.allow_images_from)),
        observer=metrics,
        on_fatal=on_fatal,
    )
    keys = [*args.api_key, *os.environ.get("SAT_API_KEYS", "").split()]
    app = create_app(core, metrics, keys=keys, origins=args.allow_origin, on_shutdown=core.scheduler.close)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=args.grace)
    server = uvicorn.Server(config)
    host, port = listening.getsockname()[:2]
    address = f"[{host}]" if ":" in host else host
    for name in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises it once more when it is done; let that pass
        signal.signal(name, lambda *_: setattr(server, "should_exit", True))
    print(f"Serving {core.names[0]} on http://{address}:{port}/v1", flush=True)
    server.run(sockets=[listening])
    return 1 if lost else 0
