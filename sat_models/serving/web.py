"""The web page as a program: a model to talk to, one that draws, or both, each in a tab of its own. Needs Gradio."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sat_models.errors import InputError, ZooError, complain
from sat_models.flags import flag
from sat_models.serving import models, server
from sat_models.serving.images import ImagePolicy
from sat_models.serving.web_chat import Page
from sat_models.serving.web_drawing import Easel, newest_or_chosen
from sat_models.serving.web_texts import LANGUAGES, WORDS

if TYPE_CHECKING:
    import argparse

_STYLE = "footer {display: none !important}"


@dataclass(frozen=True)
class Site:
    """The whole page. One of its two parts is there at least.

    Attributes:
        page: to talk.
        easel: to draw.
        language: at the start.
    """

    page: Page | None = None
    easel: Easel | None = None
    language: str = "english"

    @property
    def title(self) -> str:
        """The names of the models."""
        parts = (self.page and self.page.core.names, self.easel and self.easel.studio.names)
        return " \u00b7 ".join(names[0] for names in parts if names)

    @property
    def max_waiting(self) -> int:
        """Requests in the queues."""
        parts = (self.page and self.page.core.limits, self.easel and self.easel.studio.limits)
        return sum(limits.max_waiting for limits in parts if limits)

    @property
    def max_bytes(self) -> int:
        """Of an image that is uploaded."""
        return (self.page.core.image_policy if self.page else ImagePolicy()).max_bytes

    def build(self) -> Any:
        """The Gradio page."""
        import gradio as gr

        words, named = WORDS[self.language], {}
        with gr.Blocks(title=self.title, analytics_enabled=False) as blocks:
            with gr.Row():
                gr.Markdown(f"## {self.title}")
                names = [(name, key) for key, name in LANGUAGES.items()]
                language = gr.Radio(names, value=self.language, show_label=False, container=False)
            if self.page and self.easel:
                with gr.Tabs() as tabs:
                    for part, name in ((self.page, "ask_tab"), (self.easel, "draw_tab")):
                        with gr.Tab(words[name], id=name) as tab:
                            named |= {name: tab, **part.build(gr, language, words)}
                _let_ask(gr, named, tabs)
            else:
                named = (self.page or self.easel).build(gr, language, words)
            language.change(lambda chosen: _translated(gr, named, WORDS[chosen]), language, list(named.values()))
        return blocks


def _let_ask(gr: Any, named: dict[str, Any], tabs: Any) -> None:
    """The image that was clicked at in the gallery, else the newest, becomes the one that is asked about."""
    chosen, gallery = gr.State(None), named["gallery"]

    def note(event: Any) -> int:
        return event.index

    def ask(shown: Sequence[tuple[str, str]] | None, index: int | None) -> tuple[Any, Any]:
        place = newest_or_chosen(shown, index)
        return (gr.skip(), gr.skip()) if place is None else (place, gr.Tabs(selected="ask_tab"))

    note.__annotations__["event"] = gr.SelectData  # by which Gradio sees that the function wants it
    gallery.select(note, None, chosen)
    gallery.change(lambda: None, None, chosen)
    named["ask_about"].click(ask, [gallery, chosen], [named["picture"], tabs])


def _translated(gr: Any, named: dict[str, Any], words: dict[str, str]) -> list[Any]:
    """An update of each component in a language: buttons by their value, the others by their label."""
    updates = []
    for name, component in named.items():
        what = {"value" if isinstance(component, gr.Button) else "label": words[name]}
        if f"{name}_placeholder" in words:
            what["placeholder"] = words[f"{name}_placeholder"]
        updates.append(gr.update(**what))
    return updates


def make_parser() -> argparse.ArgumentParser:
    """All flags of the page."""
    import argparse

    about = "Talk to a vision-language model in the browser, draw with a painter, or both."
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    server.add_serving_flags(parser)
    flag(parser, "host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    flag(parser, "port", type=int, default=7860, help="0 takes a free one (default: %(default)s)")
    language = parser.add_mutually_exclusive_group()
    for name in LANGUAGES:
        language.add_argument(f"--{name}", dest="language", action="store_const", const=name, default="english")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until stopped. Returns the exit code: 0; 1 when the processes of a split model lost each other; 2
    for what the user can mend."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        server.require_packages("gradio", purpose="The web page")
        port = args.port
        if int(os.environ.get("RANK", "0")) == 0:
            with server.listen(args.host, args.port) as probe:
                port = probe.getsockname()[1]
        loaded = models.load(parser, args)
        return server.on_ranks(loaded.engine, lambda: _serve(args, loaded, port))
    except ZooError as error:
        complain(error)
        return 2


def _serve(args: argparse.Namespace, loaded: models.Models, port: int) -> int:
    over, lost = threading.Event(), threading.Event()

    def on_fatal() -> None:
        lost.set()
        over.set()

    core, studio = loaded.core(models.limits_of(args), on_fatal=on_fatal), loaded.studio(args)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: over.set())
    site = Site(core and Page(core), studio and Easel(studio, asks=core is not None), args.language)
    blocks = launch(site, host=args.host, port=port)
    print(f"Serving {loaded.named} on http://{args.host}:{port}", flush=True)
    over.wait()
    models.closing(core, studio, grace=5)()
    blocks.close(verbose=False)
    return 1 if lost.is_set() else 0


def launch(site: Site, *, host: str, port: int) -> Any:
    """Start serving the page in the background.

    Raises:
        InputError: the port was taken in the meantime.
    """
    import gradio as gr

    blocks = site.build()
    blocks.queue(max_size=site.max_waiting, default_concurrency_limit=None)
    try:
        blocks.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, show_error=True,
            ssr_mode=False, css=_STYLE, max_file_size=site.max_bytes,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )  # fmt: skip
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port} cannot be listened on ({error}). Choose another port."
        ) from error
    return blocks
