"""The part of the web page where images are drawn: a prompt, what it becomes, and those that were made before."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from sat_models.config import PainterConfig
from sat_models.errors import ZooError
from sat_models.sampling.options import DrawingKeywords
from sat_models.serving.drawings import Drawing, Drawn, Event, Progress, Waits
from sat_models.serving.requests import Failed
from sat_models.serving.studio import Studio, drawing_events
from sat_models.serving.web_texts import WISHES, WORDS

logger = logging.getLogger(__name__)

MOST_SHOWN = 60
"""Images of a gallery, the newest first."""
_PAUSE = 0.5
"""Seconds between two previews, at least."""


class Easel:
    """Where images are drawn; one object for all the page's users, whose galleries live in their browsers.

    Args:
        asks: beside it there is a model that can be asked about them.
    """

    def __init__(self, studio: Studio, *, asks: bool = False) -> None:
        self.studio, self.asks = studio, asks

    async def draw(
        self,
        prompt: str,
        width: float | None,
        height: float | None,
        steps: float | None,
        guidance: float | None,
        count: float,
        seed: float | None,
        gallery: Sequence[tuple[str, str]] | None,
        language: str,
    ) -> AsyncIterator[tuple[str, Any, Any]]:
        """Images of a prompt: yields a line that says how far it is, what the image may become or is, and the gallery;
        what stays as it is shown is not sent again.

        Closing it (the stop button, a closed page) ends the drawing.
        """
        import gradio as gr

        words, began, same = WORDS[language], time.monotonic(), gr.skip()
        shown = [(place, text) for place, text in gallery or []]
        yield words["begins"], None, same
        try:
            options: DrawingKeywords = {} if width is None or height is None else {"size": (int(width), int(height))}
            numbers = {"steps": steps and int(steps), "guidance": guidance, "seed": seed if seed is None else int(seed)}
            options |= {name: number for name, number in numbers.items() if number is not None}
            drawing = Drawing(prompt, options, count=int(count), pause=_PAUSE)
            async with contextlib.aclosing(drawing_events(self.studio, drawing)) as events:
                async for event in events:
                    if isinstance(event, Failed):
                        raise event.error
                    said = _said(event, words, drawing.count)
                    line = " \u00b7 ".join([*said, f"{time.monotonic() - began:.1f} s"])
                    if isinstance(event, Drawn):
                        shown = [(event.work, f"{prompt.strip()} \u00b7 {event.seed}"), *shown][:MOST_SHOWN]
                        yield line, event.work, shown
                    elif said:
                        yield line, getattr(event, "preview", None) or same, same
        except Exception as error:
            if not isinstance(error, ZooError):
                logger.exception("a drawing failed")
            reason = error.public if isinstance(error, ZooError) else f"{type(error).__name__}: {error}"
            yield f"**{words['error']}:** {reason}", same, same

    def build(self, gr: Any, language: Any, words: dict[str, str]) -> dict[str, Any]:
        """Its components, by the names of their words.

        Args:
            language: the component that says which language is chosen.
        """
        with gr.Row():
            with gr.Column(scale=2):
                named = self._build_wish(gr, words)
            with gr.Column(scale=3):
                easel = gr.Image(
                    label=words["easel"], elem_id="easel", interactive=False, height=400, format="png",
                    buttons=["download", "fullscreen"],
                )  # fmt: skip
                said = gr.Markdown("", elem_id="progress")
                gallery = gr.Gallery(
                    label=words["gallery"], elem_id="gallery", type="filepath", format="png", columns=4, height=260,
                    object_fit="contain", interactive=False,
                )  # fmt: skip
                ask = gr.Button(words["ask_about"], elem_id="ask_about", visible=self.asks)
        named |= {"easel": easel, "gallery": gallery, "ask_about": ask}
        order = ("wish", "width", "height", "steps", "guidance", "count", "draw_seed", "gallery")
        given, shown = [*(named[name] for name in order), language], [said, easel, gallery]
        how = {"concurrency_limit": None, "show_progress": "hidden"}
        running = [trigger(self.draw, given, shown, **how) for trigger in (named["draw"].click, named["wish"].submit)]
        named["draw_stop"].click(None, cancels=running)
        return named

    def _build_wish(self, gr: Any, words: dict[str, str]) -> dict[str, Any]:
        most = self.studio.limits.most
        wish = gr.Textbox(
            label=words["wish"], placeholder=words["wish_placeholder"], elem_id="wish", lines=3, max_lines=8
        )
        with gr.Row():
            draw = gr.Button(words["draw"], variant="primary", elem_id="draw")
            stop = gr.Button(words["draw_stop"], variant="stop", elem_id="draw_stop")
        gr.Examples(list(WISHES), wish, label=words["examples"])
        named = {"wish": wish, "draw": draw, "draw_stop": stop, **self._build_choices(gr, words)}
        named["count"] = gr.Slider(1, max(most, 2), 1, step=1, label=words["count"], elem_id="count", visible=most > 1)
        named["draw_seed"] = gr.Number(None, precision=0, label=words["draw_seed"], elem_id="draw_seed")
        return named

    def _build_choices(self, gr: Any, words: dict[str, str]) -> dict[str, Any]:
        """Size, steps and guidance; of a painter that has one of each there is nothing to choose."""
        names, config = ("width", "height", "steps", "guidance"), self.studio.painter.config
        if not isinstance(config, PainterConfig):
            return {name: gr.Number(None, label=words[name], visible=False) for name in names}
        sides, usual = (config.least_side, config.most_side, config.side_multiple), config.usual_size
        rows = {"width": (*sides, usual[0]), "height": (*sides, usual[1])}
        rows |= {"steps": (1, max(100, config.steps), 1, config.steps)}
        rows |= {"guidance": (0, max(15, config.guidance), 0.1, config.guidance)}
        return {
            name: gr.Slider(least, most, now, step=step, label=words[name], elem_id=name)
            for name, (least, most, step, now) in rows.items()
        }


def _said(event: Event, words: dict[str, str], count: int) -> list[str]:
    """What is told of an event."""
    if isinstance(event, Waits):
        return [words["waits"].format(count=event.ahead)]
    if isinstance(event, Progress):
        step = words["step"].format(step=event.step, of=event.of)
        return [step, words["image_of"].format(number=event.image, count=count)] if count > 1 else [step]
    if isinstance(event, Drawn):
        cut = [words["left_out"].format(text=event.cut)] if event.cut else []
        return [words["done"].format(seed=event.seed), *cut]
    return []


def newest_or_chosen(gallery: Sequence[tuple[str, str]] | None, chosen: int | None) -> str | None:
    """The file of the image of the gallery that was clicked at, else of the newest; None where there is none."""
    if not gallery:
        return None
    return gallery[chosen if chosen is not None and chosen < len(gallery) else 0][0]
