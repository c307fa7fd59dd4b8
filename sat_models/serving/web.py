"""The web page: a picture, a conversation that streams, boxes drawn on the picture. Needs Gradio."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sat_models.errors import InputError, ZooError, complain
from sat_models.flags import flag
from sat_models.generation.sampling import SamplingOptions
from sat_models.processing.drawing import draw_boxes
from sat_models.processing.image import load_image
from sat_models.processing.prompts import Turn
from sat_models.serving import server
from sat_models.serving.core import Limits, Question, ServerCore, answer_events
from sat_models.serving.requests import Failed, Finished, Piece
from sat_models.serving.web_tables import tables
from sat_models.serving.web_texts import LANGUAGES, TEMPLATES, WORDS
from sat_models.text import printable

if TYPE_CHECKING:
    import argparse

    from sat_models.generation.ranks import SharedEngine
    from sat_models.zoo.vlm import VLM

logger = logging.getLogger(__name__)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Talk = tuple[str | None, list[Turn]]
"""A conversation: the file of its picture, and its turns."""
_STYLE = "footer {display: none !important}"


class Page:
    """The actions of the page; one object for all its users, whose conversations live in their browsers' sessions."""

    def __init__(self, core: ServerCore, *, language: str = "english") -> None:
        self._core = core
        self.language = language

    async def ask(
        self,
        question: str,
        image_path: str | None,
        shown: list[dict[str, str]],
        talk: Talk,
        language: str,
        version: str,
        temperature: float,
        top_p: float,
        top_k: float,
        tokens: float,
        seed: float | None,
    ) -> AsyncIterator[tuple[list[dict[str, str]], Talk, Image.Image | None, str, str]]:
        """One turn: yields messages, conversation, picture with boxes, their table, and the question box, as they grow.

        A picture other than that of the conversation starts a new one (here, not when it is chosen: an event of its own
        could come late and take away an answer that has begun).
        Closing it (the stop button, a closed page) gives the request's place free.
        """
        words = WORDS[language]
        if image_path != talk[0]:
            talk, shown = (image_path, []), []
        turns = talk[1]
        asked_as = printable(question)  # what cannot be written is refused below, and must be shown all the same
        shown = [*shown, {"role": "user", "content": asked_as}, {"role": "assistant", "content": ""}]
        text, image = "", None
        yield shown, talk, None, "", ""
        try:
            image = self._open(image_path)
            options = SamplingOptions(
                max_new_tokens=int(tokens), temperature=temperature, top_p=top_p, top_k=int(top_k),
                seed=None if seed is None else int(seed),
            )  # fmt: skip
            asked = Question(question, [image] if image else [], turns, version, options, logprobs=True)
            async with contextlib.aclosing(answer_events(self._core, asked)) as events:
                async for event in events:
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Piece):
                        text += event.text
                        yield _with_answer(shown, text), talk, None, "", ""
                    elif isinstance(event, Finished):
                        found = self._core.read(text, image.size if image else None)
                        cut = f" {words['cut']}" if event.answer.finish_reason == "length" else ""
                        drawn = draw_boxes(image, found.boxes) if image and found.boxes else None
                        yield (
                            _with_answer(shown, text + cut),
                            (image_path, [*turns, (question, text)]),
                            drawn,
                            tables(found, words, event.answer),
                            "",
                        )
        except Exception as error:
            if not isinstance(error, ZooError):
                logger.exception("an answer failed")
            said = error.public if isinstance(error, ZooError) else f"{type(error).__name__}: {error}"
            yield _with_answer(shown, f"**{words['error']}:** {said}"), talk, None, "", asked_as

    def _open(self, path: str | None) -> Image.Image | None:
        """The image that was uploaded to this path, which is never taken for a URL that the server would fetch."""
        policy = self._core.image_policy
        return None if path is None else load_image(Path(path), max_pixels=policy.max_pixels)

    def build(self) -> Any:
        """The Gradio page."""
        import gradio as gr

        core, words = self._core, WORDS[self.language]
        with gr.Blocks(title=core.names[0], analytics_enabled=False) as page:
            talk = gr.State((None, []))
            with gr.Row():
                gr.Markdown(f"## {core.names[0]}")
                names = [(name, key) for key, name in LANGUAGES.items()]
                language = gr.Radio(names, value=self.language, show_label=False, container=False)
            with gr.Row():
                with gr.Column(scale=2):
                    image = gr.Image(type="filepath", label=words["picture"], elem_id="picture", height=320)
                    files = sorted(EXAMPLES.glob("*.png"), key=lambda path: (len(path.name), path.name))
                    if files:
                        gr.Examples([str(path) for path in files[:8]], image, label=words["examples"])
                    template = gr.Dropdown(
                        [(label, text) for label, text in TEMPLATES.values()], value=None, label=words["template"],
                        elem_id="template",
                    )  # fmt: skip
                    with gr.Accordion(words["settings"], open=False) as settings:
                        version = gr.Dropdown(list(core.versions), value=core.processor.version, label=words["version"])
                        temperature = gr.Slider(0, 2, 0.0, step=0.05, label=words["temperature"])
                        top_p = gr.Slider(0, 1, 0.4, step=0.05, label=words["top_p"])
                        top_k = gr.Slider(0, 100, 0, step=1, label=words["top_k"])
                        most = core.limits.max_new_tokens
                        tokens = gr.Slider(1, most, min(512, most), step=1, label=words["tokens"])
                        seed = gr.Number(None, precision=0, label=words["seed"])
                with gr.Column(scale=3):
                    chat = gr.Chatbot(label=words["chat"], elem_id="chat", height=300, buttons=["copy"])
                    question = gr.Textbox(
                        label=words["question"], placeholder=words["placeholder"], elem_id="question", lines=1
                    )
                    with gr.Row():
                        send = gr.Button(words["send"], variant="primary", elem_id="send")
                        stop = gr.Button(words["stop"], variant="stop", elem_id="stop")
                        clear = gr.Button(words["clear"], elem_id="clear")
                    drawn = gr.Image(
                        label=words["drawn"], elem_id="drawn", interactive=False, height=300,
                        buttons=["download", "fullscreen"],
                    )  # fmt: skip
                    table = gr.Markdown("", elem_id="boxes")
            given = [question, image, chat, talk, language, version, temperature, top_p, top_k, tokens, seed]
            shown = [chat, talk, drawn, table, question]
            how = {"concurrency_limit": None, "show_progress": "hidden"}
            running = [trigger(self.ask, given, shown, **how) for trigger in (send.click, question.submit)]
            stop.click(None, cancels=running)
            fresh = lambda: ([], (None, []), None, "", "")  # noqa: E731
            clear.click(fresh, None, shown, cancels=running)
            template.input(lambda text: text or "", template, question)
            named = {
                "picture": image, "template": template, "question": question, "chat": chat, "drawn": drawn,
                "settings": settings, "version": version, "temperature": temperature, "top_p": top_p,
                "top_k": top_k, "tokens": tokens, "seed": seed, "send": send, "stop": stop, "clear": clear,
            }  # fmt: skip
            language.change(lambda chosen: _translated(gr, named, WORDS[chosen]), language, list(named.values()))
        return page


def _translated(gr: Any, named: dict[str, Any], words: dict[str, str]) -> list[Any]:
    """An update of each component in a language: buttons by their value, the others by their label."""
    updates = []
    for name in named:
        what = {"value": words[name]} if name in ("send", "stop", "clear") else {"label": words[name]}
        if name == "question":
            what["placeholder"] = words["placeholder"]
        updates.append(gr.update(**what))
    return updates


def _with_answer(shown: list[dict[str, str]], text: str) -> list[dict[str, str]]:
    """The conversation with the last answer's text so far; what looks like a tag is shown as it is."""
    return [*shown[:-1], {"role": "assistant", "content": text.replace("<", "&lt;")}]


def make_parser() -> argparse.ArgumentParser:
    """All flags of the page."""
    import argparse

    parser = argparse.ArgumentParser(description="Talk to a vision-language model in the browser.", allow_abbrev=False)
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
    args = make_parser().parse_args(argv)
    try:
        server.require_packages("gradio", purpose="The web page")
        port = args.port
        if int(os.environ.get("RANK", "0")) == 0:
            with server.listen(args.host, args.port) as probe:
                port = probe.getsockname()[1]
        vlm, engine = server.load(args)
        return server.on_ranks(engine, lambda: _serve(args, vlm, engine, port))
    except ZooError as error:
        complain(error)
        return 2


def _serve(args: argparse.Namespace, vlm: VLM, engine: SharedEngine, port: int) -> int:
    over, lost = threading.Event(), threading.Event()
    limits = Limits(
        max_new_tokens=args.max_new_tokens,
        seconds=args.timeout,
        max_rows=args.max_batch,
        max_waiting=args.max_waiting,
        prompt_piece=args.prompt_piece,
    )

    def on_fatal() -> None:
        lost.set()
        over.set()

    core = ServerCore(vlm, engine, names=server.served_names(args), limits=limits, on_fatal=on_fatal)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: over.set())
    page = launch(Page(core, language=args.language), host=args.host, port=port)
    print(f"Serving {core.names[0]} on http://{args.host}:{port}", flush=True)
    over.wait()
    core.scheduler.close(grace=5)
    page.close(verbose=False)
    return 1 if lost.is_set() else 0


def launch(page: Page, *, host: str, port: int) -> Any:
    """Start serving the page in the background.

    Raises:
        InputError: the port was taken in the meantime.
    """
    import gradio as gr

    blocks = page.build()
    blocks.queue(max_size=page._core.limits.max_waiting, default_concurrency_limit=None)
    try:
        blocks.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, show_error=True,
            ssr_mode=False, css=_STYLE, max_file_size=page._core.image_policy.max_bytes,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )  # fmt: skip
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port} cannot be listened on ({error}). Choose another port."
        ) from error
    return blocks
