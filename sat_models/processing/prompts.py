"""Prompt templates: what the text around the pictures looks like.

Pictures come first, before all history: in front of everything in CogVLM, in the first question in others. The strings
are the ones that the released weights were trained with, CogVLM's pinned letter by letter by the golden data, so do not
tidy their spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sat_models.errors import UnknownNameError

Turn = tuple[str, str]
"""One finished turn: (question, answer)."""


@dataclass(frozen=True)
class PromptStyle:
    """One template.

    Attributes:
        before: text in front of a question.
        after: text between the last question and the answer to be written.
        after_past: text between an earlier question and its answer, None where the style keeps no history.
        between: text between an earlier answer and the next question's `before`.
        summary: one line for help texts.
        opening: text in front of everything.
        picture: text on either side of each picture, only where there is one.
        picture_first: pictures stand in front of the first `before`, not behind it.
        ends_answers: the end token stands behind each earlier answer.
        stops: texts that end an answer besides the end token.
    """

    before: str
    after: str
    after_past: str | None
    between: str
    summary: str
    opening: str = ""
    picture: tuple[str, str] = ("", "")
    picture_first: bool = True
    ends_answers: bool = False
    stops: tuple[str, ...] = ()

    @property
    def keeps_history(self) -> bool:
        """Whether earlier turns are part of the prompt (else they are left out and each turn stands alone)."""
        return self.after_past is not None


_CURIOUS = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the human's questions."
)
_GIVEN = (
    "Give the following image: <Img>ImageContent</Img>. You will be able to see the image once I provide it to you. "
    "Please answer my questions."
)
_IMG = ("<Img>", "</Img> ")

STYLES: dict[str, PromptStyle] = {
    "base": PromptStyle("", "", None, "", "the question as it is; no history"),
    "chat": PromptStyle(" [INST] ", " [/INST] ", " [/INST] ", "", "dialogue with detailed answers"),
    "vqa": PromptStyle("Question: ", " Short answer:", None, "", "answers of a word or two; no history"),
    "chat_old": PromptStyle("Question: ", " Answer:", " Answer: ", "\n", "dialogue, the form of the first releases"),
    "glm_zh": PromptStyle("问：", "\n答：", "\n答：", "\n", "VisualGLM in Chinese", picture=("<img>", "</img>")),
    "glm_en": PromptStyle("Q:", "\nA:", "\nA:", "\n", "VisualGLM in English", picture=("<img>", "</img>")),
    "llava_v0": PromptStyle(
        "Human: ", "###Assistant:", "###Assistant: ", "###", "LLaVA 1.0",
        opening=f"{_CURIOUS}###", picture=("", "\n"), picture_first=False, stops=("###",),
    ),
    "llava_v1": PromptStyle(
        "USER: ", " ASSISTANT:", " ASSISTANT: ", "", "LLaVA 1.5",
        opening=f"{_CURIOUS} ", picture=("", "\n"), picture_first=False, ends_answers=True,
    ),
    "minigpt4": PromptStyle(
        "Human: ", "###Assistant:", "###Assistant: ", "###", "MiniGPT-4 with Vicuna",
        opening=f"{_GIVEN}###", picture=_IMG, picture_first=False, stops=("###",),
    ),
    "minigpt4_llama2": PromptStyle(
        "[INST] ", " [/INST]", " [/INST] ", "", "MiniGPT-4 with Llama-2, and v2",
        picture=_IMG, picture_first=False, ends_answers=True,
    ),
}  # fmt: skip
"""Sources: the CogVLM repository at f7283b2; VisualGLM-6B `model/chat.py` at e314fb9; LLaVA `conversation.py` at
c121f04 ("llava_v0", "llava_v1"); MiniGPT-4 `conversation.py` and `eval_configs`."""
PROMPT_VERSIONS: tuple[str, ...] = ("base", "chat", "vqa", "chat_old")
"""Styles of CogVLM and CogAgent."""


def prompt_style(version: str) -> PromptStyle:
    """The style of a name.

    Raises:
        UnknownNameError: `version` is not one of `STYLES`.
    """
    style = STYLES.get(version) if isinstance(version, str) else None
    if style is None:
        raise UnknownNameError("prompt version", str(version), STYLES, hint="Choose one with --version.")
    return style


def build_prompt(version: str, query: str, history: Sequence[Turn] = ()) -> str:
    """The text of a prompt without pictures (for CogVLM, the text after them).

    Args:
        version: one of `STYLES`.
        query: the question to be answered now.
        history: earlier (question, answer) pairs, oldest first; styles without history leave them out.

    Raises:
        UnknownNameError: unknown `version`.
    """
    return dialogue_text(version, query, history)[0]


def dialogue_text(version: str, query: str, history: Sequence[Turn] = ()) -> tuple[str, list[tuple[int, int]]]:
    """`build_prompt` plus where the earlier answers lie in it.

    Returns:
        The text and, for each turn of `history` that is in it, the (start, end) character positions of its answer.
    """
    text, spans = dialogue_parts(version, query, history)[1:]
    return text, spans


def dialogue_parts(
    version: str, query: str, history: Sequence[Turn] = (), *, pictures: int = 0
) -> tuple[list[str], str, list[tuple[int, int]]]:
    """A prompt cut at its pictures; each part is tokenised on its own.

    Args:
        pictures: how many there are.

    Returns:
        The text in front of each picture, the text behind the last one, and in the latter the (start, end) character
        positions of the answers of `history`.
    """
    style = prompt_style(version)
    lead, text, spans = [], style.opening, []
    for _ in range(pictures):
        in_front = "" if style.picture_first or lead else style.before
        lead.append(text + in_front + style.picture[0])
        text = style.picture[1]
    opened = bool(pictures) and not style.picture_first  # the first question's `before` stands in front of its pictures
    for question, answer in history if style.keeps_history else ():
        text += ("" if opened else style.before) + question + style.after_past
        spans.append((len(text), len(text) + len(answer)))
        text += answer + style.between
        opened = False
    return lead, text + ("" if opened else style.before) + query + style.after, spans
