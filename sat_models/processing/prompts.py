"""Prompt templates: what the text after the image slot looks like.

The image slot comes first in the sequence, before all history; the strings here are what follows it. They are the
ones the released weights were trained with, pinned letter by letter by the golden data (CogVLM repository at f7283b2),
so do not tidy their spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UnknownNameError

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
    """

    before: str
    after: str
    after_past: str | None
    between: str
    summary: str

    @property
    def keeps_history(self) -> bool:
        """Whether earlier turns are part of the prompt (else they are left out and each turn stands alone)."""
        return self.after_past is not None


STYLES: dict[str, PromptStyle] = {
    "base": PromptStyle("", "", None, "", "the question as it is; no history"),
    "chat": PromptStyle(" [INST] ", " [/INST] ", " [/INST] ", "", "dialogue with detailed answers"),
    "vqa": PromptStyle("Question: ", " Short answer:", None, "", "answers of a word or two; no history"),
    "chat_old": PromptStyle("Question: ", " Answer:", " Answer: ", "\n", "dialogue, the form of the first releases"),
}
PROMPT_VERSIONS: tuple[str, ...] = tuple(STYLES)


def prompt_style(version: str) -> PromptStyle:
    """The style of a name.

    Raises:
        UnknownNameError: `version` is not one of `PROMPT_VERSIONS`.
    """
    style = STYLES.get(version) if isinstance(version, str) else None
    if style is None:
        raise UnknownNameError("prompt version", str(version), STYLES, hint="Choose one with --version.")
    return style


def build_prompt(version: str, query: str, history: Sequence[Turn] = ()) -> str:
    """The text after the image slot.

    Args:
        version: one of `PROMPT_VERSIONS`.
        query: the question to be answered now.
        history: earlier (question, answer) pairs, oldest first; `base` and `vqa` leave them out.

    Raises:
        UnknownNameError: unknown `version`.
    """
    return dialogue_text(version, query, history)[0]


def dialogue_text(version: str, query: str, history: Sequence[Turn] = ()) -> tuple[str, list[tuple[int, int]]]:
    """`build_prompt` plus where the earlier answers lie in it.

    Returns:
        The text and, for each turn of `history` that is in it, the (start, end) character positions of its answer.
    """
    style = prompt_style(version)
    text, spans = "", []
    for question, answer in history if style.keeps_history else ():
        text += style.before + question + style.after_past
        spans.append((len(text), len(text) + len(answer)))
        text += answer + style.between
    return text + style.before + query + style.after, spans
