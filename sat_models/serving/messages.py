"""A list of chat messages -> pictures, system text, history and the question, as prompts take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from sat_models.errors import InputError
from sat_models.processing.prompts import PromptStyle, Turn
from sat_models.serving.images import ImagePolicy
from sat_models.serving.schema import ImagePart, Message

SYSTEM = ("system", "developer")
"""Roles of system messages."""
_ORDER = "Messages are an optional system message, then user and assistant in turn, and end with user."


def image_urls(messages: Sequence[Message]) -> list[str]:
    """The URLs of all pictures, in order.

    Raises:
        InputError: a picture in a message that is not the user's.
    """
    urls = []
    for number, message in enumerate(messages, 1):
        found = [part.url for part in message.content if isinstance(part, ImagePart)]
        if found and message.role != "user":
            raise InputError(f"Message {number} has the role {message.role} and a picture; only users send pictures.")
        urls += found
    return urls


def open_images(
    messages: Sequence[Message], policy: ImagePolicy, *, most: int, wanted: Callable[[], bool] = lambda: True
) -> list[Image.Image]:
    """All pictures, in order.

    Args:
        policy: which are opened.
        most: how many there may be.
        wanted: whether somebody still waits for them; asked before each.

    Raises:
        InputError: more than `most`, or one that the policy refuses.
    """
    urls = image_urls(messages)
    if len(urls) > most:
        raise InputError(f"The messages hold {len(urls)} pictures; this server takes {most}.")
    return [policy.open(url) for url in urls if wanted()]


def system_text(messages: Sequence[Message]) -> str | None:
    """The text of the system messages, a line each; None where they say nothing."""
    return "\n".join(filter(None, (_text(message) for message in messages if message.role in SYSTEM))) or None


def conversation(messages: Sequence[Message], style: PromptStyle | None = None) -> tuple[str, list[Turn]]:
    """The question to answer, and the turns before it.

    Args:
        style: says whether a system text has a place of its own, else it stands in front of the first question; and
            whether images may stand anywhere: then its marks say where they were sent, unless a text has marks.

    Raises:
        InputError: an order of roles other than that of a conversation that waits for an answer, or no words.
    """
    asked: list[str] = []
    history: list[Turn] = []
    placing = _places_images(messages, style)
    for number, message in enumerate(messages, 1):
        text = _marked(message, style) if placing else _text(message)
        if message.role in SYSTEM:
            if history or asked:
                raise InputError(f"Message {number} has the role {message.role} after the conversation began. {_ORDER}")
        elif message.role == "user":
            asked.append(text)
        elif not asked:
            raise InputError(f"Message {number} is an answer without a question. {_ORDER}")
        else:
            history.append(("\n".join(asked), text))
            asked = []
    if not asked:
        raise InputError(f"There is no question to answer: the last message is no user's. {_ORDER}")
    turns = [*history, ("\n".join(asked), "")]
    if (style is None or style.system is None) and (system := system_text(messages)) is not None:
        turns[0] = (f"{system}\n{turns[0][0]}", turns[0][1])
    if not (turns[-1][0].replace(style.mark, "") if placing else turns[-1][0]).strip():
        raise InputError("The question is empty. Add a text part to the last message, such as 'Describe this image.'")
    return turns[-1][0], turns[:-1]


def _text(message: Message) -> str:
    return "\n".join(part.text for part in message.content if not isinstance(part, ImagePart))


def _places_images(messages: Sequence[Message], style: PromptStyle | None) -> bool:
    """True if the prompt says itself where images stand."""
    return style is not None and style.images_anywhere and not any(style.mark in _text(each) for each in messages)


def _marked(message: Message, style: PromptStyle) -> str:
    """A message's text with marks where its images stand; behind those at its beginning what the style puts there."""
    shown = [style.mark if isinstance(part, ImagePart) else part.text for part in message.content]
    first = next((place for place, part in enumerate(message.content) if not isinstance(part, ImagePart)), len(shown))
    return (style.mark + style.gap) * first + "\n".join(shown[first:])
