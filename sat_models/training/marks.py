"""Marks in the texts of training data: which say that a picture stands here, and which nobody here reads.

Other families and trainers write a picture's place in many ways; all of them become `<image>`. What stands for
something that is not read (boxes by reference, films, sound) is refused, since the text without it would mean something
else.
"""

from __future__ import annotations

import re

from sat_models.training.records import SLOT, EntryError

NAMED = re.compile(r"\(?<(?P<tag>img|image)>(?P<name>[^<>\r\n]*)</(?P=tag)>\)?", re.I)
"""Qwen-VL's: the picture's name stands inside; nothing, or MiniCPM-V's "./", is the next picture."""
UNNAMED = ("", "./")
_PLACES = re.compile(
    r"(?:<im_start>)<image>(?:<im_end>)"  # LLaVA 1.0
    r"|<\|begin_of_image\|>(?:<\|(?:image|endoftext)\|>)*<\|end_of_image\|>"  # GLM-4V
    r"|(?:<fake_token_around_image>)(?:<image>)+(?:<fake_token_around_image>)?"  # Idefics
    r"|(?:<img>)?(?:<IMG_CONTEXT>)+(?:</img>)?"  # InternVL, as it is fed
    r"|<img>\s*<ImageHere>\s*</img>"  # MiniGPT-4
    r"|(?:<\|vision_start\|>)?(?:<\|image_pad\|>)+(?:<\|vision_end\|>)?"  # Qwen2-VL
    r"|<\|?(?:image|img|imagehere|image_?placeholder|start_of_image|image_soft_token)\|?\s*/?>"
    r"|<\|?(?:image|img|picture)[ _-]?(?P<number>\d{1,3})\|?\s*/?>"  # MiniCPM-V, Phi-3
    r"|\[(?:IMG|IMAGE)\]"  # Pixtral
    r"|<__media__>",
    re.I,
)
_UNREAD = re.compile(
    r"<\|?(?:video|videohere|audio|sound|speech|bbox|ref-object|quad|point|box_ref)(?:[ _-]?\d+)?\|?\s*/?>"
    r"|<\|(?:video|audio)_pad\|>",
    re.I,
)
_IN_ANSWERS = re.compile(
    r"<image>|<Image(?:Here)?>|<IMG_CONTEXT>|<\|(?:image|img)(?:_pad|_\d+)?\|>|<image[ _-]?\d+>|<start_of_image>"
    r"|<image_soft_token>|<\|begin_of_image\|>|<img>[^<>\r\n]*</img>"
)
"""Marks that no answer may hold: a picture cannot be written. Marks that are also HTML may stand in text about HTML."""


def with_slots(text: str, where: str) -> tuple[str, list[str | None]]:
    """A question with `<image>` in the place of every mark of a picture.

    Args:
        text: a question.
        where: for messages, such as "'messages' item 1".

    Returns:
        The text, and for each `<image>` the name of its picture, None where it has none.

    Raises:
        EntryError: a mark of something that is not read, or numbered marks that are out of order.
    """
    _refuse(_UNREAD.search(text), where, "which is not read here; leave such samples out or write it as text")
    names: list[str | None] = []
    last = -1

    def slot(found: re.Match[str]) -> str:
        nonlocal last
        if (named := NAMED.fullmatch(found.group())) is not None:
            inside = named.group("name").strip()
            names.append(None if inside in UNNAMED else inside)
            return SLOT
        number = found.group("number")
        if number is not None and int(number) <= last:
            raise EntryError("slots", f"{where}: '{found.group()}' is out of order; list the pictures as they come")
        last = last if number is None else int(number)
        names.append(None)
        return SLOT

    return _ANY.sub(slot, text), names


_ANY = re.compile(f"{NAMED.pattern}|{_PLACES.pattern}", re.I)


def check_answer(text: str, where: str) -> None:
    """Sees that an answer holds nothing that cannot be written.

    Raises:
        EntryError: it holds a picture, or a mark of something that is not read.
    """
    _refuse(_IN_ANSWERS.search(text), where, "but an answer can hold no picture; move it to a question")
    _refuse(_UNREAD.search(text), where, "which is not read here; leave such samples out or write it as text")


def check_system(text: str, where: str) -> str:
    """The text, if it holds no picture: these stand in questions.

    Raises:
        EntryError: it does.
    """
    _refuse(_ANY.search(text), where, "but a system text can hold no picture; move it to a question")
    _refuse(_UNREAD.search(text), where, "which is not read here; leave such samples out or write it as text")
    return text


def _refuse(found: re.Match[str] | None, where: str, why: str) -> None:
    if found is not None:
        raise EntryError("fields", f"{where} holds '{found.group()}', {why}")


def without_slots(text: str) -> str:
    """`text` without `<image>`: what stands before and after is joined by a newline if the slot was at one, else by a
    space. Text without a slot is left exactly as it is."""
    first, *others = text.split(SLOT)
    for piece in others:
        at_line = first.rstrip(" ").endswith("\n") or piece.lstrip(" ").startswith("\n")
        left, right = first.rstrip(), piece.lstrip()
        first = left + ("\n" if at_line else " ") + right if left and right else left or right
    return first
