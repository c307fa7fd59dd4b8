"""The part of the web page where a model is talked to: an image, a conversation that streams, boxes drawn on it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from PIL import Image

from sat_models.errors import ZooError
from sat_models.generation.sampling import SamplingOptions
from sat_models.processing.drawing import draw_boxes
from sat_models.processing.image import load_image
from sat_models.processing.prompts import Turn
from sat_models.serving.core import Question, ServerCore, answer_events
from sat_models.serving.requests import Failed, Finished, Piece
from sat_models.serving.web_tables import tables
from sat_models.serving.web_texts import TEMPLATES, WORDS
from sat_models.text import printable

logger = logging.getLogger(__name__)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Talk = tuple[str | None, list[Turn]]
"""A conversation: the file of its picture, and its turns."""


class Page:
    """Where a model is talked to; one object for all users, whose conversations live in their browsers' sessions."""

    def __init__(self, core: ServerCore) -> None:
        self.core = core

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
            async with contextlib.aclosing(answer_events(self.core, asked)) as events:
                async for event in events:
                    if isinstance(event, Failed):
                        raise event.error
                    if isinstance(event, Piece):
                        text += event.text
                        yield _with_answer(shown, text), talk, None, "", ""
                    elif isinstance(event, Finished):
                        found = self.core.read(text, image.size if image else None)
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
        policy = self.core.image_policy
        return None if path is None else load_image(Path(path), max_pixels=policy.max_pixels)

    def build(self, gr: Any, language: Any, words: dict[str, str]) -> dict[str, Any]:
        """Its components, by the names of their words.

        Args:
            language: the component that says which language is chosen.
        """
        talk = gr.State((None, []))
        with gr.Row():
            with gr.Column(scale=2):
                asking = self._build_question(gr, words)
            with gr.Column(scale=3):
                answering = self._build_answer(gr, words)
        named = asking | answering
        settings = [named[name] for name in ("version", "temperature", "top_p", "top_k", "tokens", "seed")]
        given = [named["question"], named["picture"], named["chat"], talk, language, *settings]
        shown = [named["chat"], talk, named["drawn"], named.pop("boxes"), named["question"]]
        how = {"concurrency_limit": None, "show_progress": "hidden"}
        running = [
            trigger(self.ask, given, shown, **how) for trigger in (named["send"].click, named["question"].submit)
        ]
        named["stop"].click(None, cancels=running)
        fresh = lambda: ([], (None, []), None, "", "")  # noqa: E731
        named["clear"].click(fresh, None, shown, cancels=running)
        named["template"].input(lambda text: text or "", named["template"], named["question"])
        return named

    def _build_question(self, gr: Any, words: dict[str, str]) -> dict[str, Any]:
        core, most = self.core, self.core.limits.max_new_tokens
        image = gr.Image(type="filepath", label=words["picture"], elem_id="picture", height=320)
        files = sorted(EXAMPLES.glob("*.png"), key=lambda path: (len(path.name), path.name))
        if files:
            gr.Examples([str(path) for path in files[:8]], image, label=words["examples"])
        tasks = [(label, text) for label, text in TEMPLATES.values()]
        template = gr.Dropdown(tasks, value=None, label=words["template"], elem_id="template")
        with gr.Accordion(words["settings"], open=False) as settings:
            version = gr.Dropdown(list(core.versions), value=core.processor.version, label=words["version"])
            temperature = gr.Slider(0, 2, 0.0, step=0.05, label=words["temperature"])
            top_p = gr.Slider(0, 1, 0.4, step=0.05, label=words["top_p"])
            top_k = gr.Slider(0, 100, 0, step=1, label=words["top_k"])
            tokens = gr.Slider(1, most, min(512, most), step=1, label=words["tokens"])
            seed = gr.Number(None, precision=0, label=words["seed"])
        return {
            "picture": image, "template": template, "settings": settings, "version": version,
            "temperature": temperature, "top_p": top_p, "top_k": top_k, "tokens": tokens, "seed": seed,
        }  # fmt: skip

    def _build_answer(self, gr: Any, words: dict[str, str]) -> dict[str, Any]:
        chat = gr.Chatbot(label=words["chat"], elem_id="chat", height=300, buttons=["copy"])
        question = gr.Textbox(
            label=words["question"], placeholder=words["question_placeholder"], elem_id="question", lines=1
        )
        with gr.Row():
            send = gr.Button(words["send"], variant="primary", elem_id="send")
            stop = gr.Button(words["stop"], variant="stop", elem_id="stop")
            clear = gr.Button(words["clear"], elem_id="clear")
        drawn = gr.Image(
            label=words["drawn"], elem_id="drawn", interactive=False, height=300, buttons=["download", "fullscreen"]
        )
        return {
            "chat": chat, "question": question, "send": send, "stop": stop, "clear": clear, "drawn": drawn,
            "boxes": gr.Markdown("", elem_id="boxes"),
        }  # fmt: skip


def _with_answer(shown: list[dict[str, str]], text: str) -> list[dict[str, str]]:
    """The conversation with the last answer's text so far; what looks like a tag is shown as it is."""
    return [*shown[:-1], {"role": "assistant", "content": text.replace("<", "&lt;")}]
