"""Prompt styles of InternLM-XComposer2, with begin tokens where each of its releases has them.

Facts: `chat` and `interleav_wrap` of the releases' code, as reference pages and golden data have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sat_models.processing.prompts import Mark, Part, PromptStyle, Special, Turn

START, END = Special("[UNUSED_TOKEN_146]"), Special("[UNUSED_TOKEN_145]")
"""A role begins; it ends. Newer tokenizer files call the same ids `<|im_start|>` and `<|im_end|>`."""
MARK = "<ImageHere>"
_NAME = "InternLM-XComposer (浦语·灵笔)"
_META = f"""You are an AI assistant whose name is {_NAME}.
- {_NAME} is a multi-modality conversational language model that is developed by Shanghai AI Laboratory \
(上海人工智能实验室). It is designed to be helpful, honest, and harmless.
- {_NAME} can understand and communicate fluently in the language chosen by the user such as English and 中文.
- {_NAME} is capable of comprehending and articulating responses effectively based on the provided image."""
"""The text that 2.0 and 4KHD send in front of every dialogue, word by word as they were trained."""


@dataclass(frozen=True)
class XComposerStyle(PromptStyle):
    """Roles between role tokens; the prompt is cut at its images, and a part may have a begin token of its own.

    Attributes:
        begins_all: each part with text begins so; else the first alone.
        begins_text: begin tokens of a prompt without images.
    """

    begins_all: bool = False
    begins_text: int = 1

    def parts(
        self, query: str, history: Sequence[Turn] = (), *, images: int = 0, system: str | None = None
    ) -> list[Part]:
        """As `PromptStyle.parts`, begin tokens included."""
        parts = super().parts(query, history, images=images, system=system)
        if not images:
            return [Mark.BEGIN] * self.begins_text + parts
        begun: list[Part] = []
        at_start = True
        for part in parts:
            if at_start and part not in (Mark.IMAGE, ""):
                begun.append(Mark.BEGIN)
                at_start = False
            begun.append(part)
            at_start |= self.begins_all and part is Mark.IMAGE
        return begun


_ANSWER = (END, "\n", START, "assistant\n")
_TRAINED = XComposerStyle(
    (START, "user\n"), _ANSWER, _ANSWER, (END, "\n"), "XComposer2 in training",
    system="", around_system=((START, "system\n"), (END, "\n")), images_first=False, mark=MARK,
    images_anywhere=True, ending=("\n", Special("</s>")),
)  # fmt: skip
_ARTICLE = replace(_TRAINED, summary="XComposer2: articles with images", in_training=_TRAINED, ending=())


def _begun(answer: str, summary: str) -> XComposerStyle:
    """A style of articles whose answers go on behind these words."""
    return replace(_ARTICLE, after=(*_ANSWER, answer), summary=summary)


STYLES: dict[str, PromptStyle] = {
    "xcomposer2": replace(
        _TRAINED, summary="InternLM-XComposer2, vl, 4KHD and composition", system=_META, begins_all=True,
        begins_text=2, ending=(), in_training=_TRAINED,
    ),
    "xcomposer2d5": replace(
        _TRAINED, summary="InternLM-XComposer2.5", begins_text=2, ending=(), in_training=_TRAINED
    ),
    "xcomposer2_article": _ARTICLE,
    "xcomposer2_places": _begun("适合插入图像的行是", "XComposer2: lines of an article for images"),
    "xcomposer2_choice": _begun("最合适的图是", "XComposer2: one of several images for a line"),
}  # fmt: skip
