"""Questions, answers and histories as callers give them: refused by name, or taken."""

from __future__ import annotations

from collections.abc import Sequence

from sat_models.errors import InputError
from sat_models.processing.prompts import Turn
from sat_models.text import is_utf8


def check_text(text: object, what: str, *, allow_empty: bool = False) -> None:
    """Raises InputError for what is no text, for empty text unless allowed, and for text that UTF-8 cannot write."""
    if not isinstance(text, str):
        raise InputError(f"The {what} is {text!r:.80} ({type(text).__name__}); it must be text.")
    if not text.strip() and not allow_empty:
        raise InputError(f"The {what} is empty. Write some text.", hint="(--no_prompt sends an empty question.)")
    _check_utf8(text, what)


def _check_utf8(text: str, what: str) -> None:
    if not is_utf8(text):
        raise InputError(
            f"The {what} holds half of a surrogate pair, which no tokenizer can read: {text!a:.80}. Send whole "
            "characters."
        )


def check_turns(turns: Sequence[Turn] | None, what: str) -> list[Turn]:
    """`turns` as pairs of texts; None is none.

    Raises:
        InputError: anything else; the message has the turn's number.
    """
    if turns is not None and not isinstance(turns, Sequence):
        raise InputError(f"The {what} is {turns!r:.80}; it must be a list of (question, answer) pairs.")
    checked = []
    for number, turn in enumerate(turns or (), 1):
        if not isinstance(turn, (list, tuple)) or len(turn) != 2 or not all(isinstance(part, str) for part in turn):
            raise InputError(
                f"Turn {number} of the {what} is {turn!r:.80}; it must be a (question, answer) pair of texts."
            )
        for part, name in zip(turn, ("question", "answer"), strict=True):
            _check_utf8(part, f"{name} of turn {number} of the {what}")
        checked.append((turn[0], turn[1]))
    return checked
