"""Prompt templates: what the text around the pictures looks like.

Pictures come first, before all history: in front of everything in CogVLM, in the first question in others. The
templates themselves stand in `models/<family>/prompts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


BASE = PromptStyle("", "", None, "", "the question as it is; no history")
"""What every model understands that has been taught no dialogue."""


def find_style(styles: Mapping[str, PromptStyle], version: str) -> PromptStyle:
    """The style of a name, of those that there are.

    Raises:
        UnknownNameError: `version` is not one of `styles`.
    """
    style = styles.get(version) if isinstance(version, str) else None
    if style is None:
        raise UnknownNameError("prompt version", str(version), styles, hint="Choose one with --version.")
    return style


def build_prompt(style: PromptStyle, query: str, history: Sequence[Turn] = ()) -> str:
    """The text of a prompt without pictures (for CogVLM, the text after them).

    Args:
        query: the question to be answered now.
        history: earlier (question, answer) pairs, oldest first; styles without history leave them out.
    """
    return dialogue_parts(style, query, history)[1]


def dialogue_parts(
    style: PromptStyle, query: str, history: Sequence[Turn] = (), *, pictures: int = 0
) -> tuple[list[str], str, list[tuple[int, int]]]:
    """A prompt cut at its pictures; each part is tokenised on its own.

    Args:
        pictures: how many there are.

    Returns:
        The text in front of each picture, the text behind the last one, and in the latter the (start, end) character
        positions of the answers of `history`.
    """
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
