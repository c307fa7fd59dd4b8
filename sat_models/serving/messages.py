"""A list of chat messages -> pictures, system text, history and the question, as prompts take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from sat_models.errors import InputError
from sat_models.processing.prompts import Turn
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


def conversation(messages: Sequence[Message], *, system_apart: bool = False) -> tuple[str, list[Turn]]:
    """The question to answer, and the turns before it.

    Args:
        system_apart: the prompt has a place for a system text. Else it stands in front of the first question.

    Raises:
        InputError: an order of roles other than that of a conversation that waits for an answer, or no words.
    """
    asked: list[str] = []
    history: list[Turn] = []
    for number, message in enumerate(messages, 1):
        text = _text(message)
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
    if not system_apart and (system := system_text(messages)) is not None:
        turns[0] = (f"{system}\n{turns[0][0]}", turns[0][1])
    if not turns[-1][0].strip():
        raise InputError("The question is empty. Add a text part to the last message, such as 'Describe this image.'")
    return turns[-1][0], turns[:-1]


def _text(message: Message) -> str:
    return "\n".join(part.text for part in message.content if not isinstance(part, ImagePart))
