"""An entry of any of the known JSON styles -> records.

The style of an entry is seen from its keys:

    {"id", "prompt", "text", "image"}                                         the document's (also "question", "answer")
    {"img", "prompt", "label"}                                                VisualGLM
    {"id", "image", "conversations": [{"from": "human", "value"}, ...]}       LLaVA (also with "role" and "content")
    {"messages": [{"role": "user", "content"}, ...], "images"}                OpenAI; content is text or a list of parts
    {"captions": [{"role": "caption", "content"}]}                            CogVLM-SFT-311K, one record per caption

The picture of any style may stand in "image", "images" or "img": a name, a list of names, or absent for text only.
Where questions hold `<image>`, there must be as many as pictures; they are taken out of the text, since the models read
all pictures before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from sat_models.processing.prompts import Turn
from sat_models.training.records import EntryError, Picture, PictureFinder, Record

CAPTION_PROMPT = "Describe this image."
"""Question of a caption, for formats that carry none."""
SLOT = "<image>"
IMAGE_KEYS = ("image", "images", "img")
QUESTION_KEYS = ("prompt", "question")
ANSWER_KEYS = ("text", "label", "answer")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_STYLES_HINT = "an entry has 'prompt' and 'text', 'conversations', 'messages', or 'captions'"
_LIKE_A_PICTURE = re.compile(r"(image|img|pic|photo|file_?(name|path))", re.I)


def parse_entry(
    entry: Any,
    source: str,
    finder: PictureFinder,
    *,
    prompt: str | None = None,
    pictures: Sequence[Picture] | None = None,
) -> list[Record]:
    """The records of one entry: one, or one per caption.

    Args:
        entry: parsed JSON.
        source: "file:line".
        finder: looks up the names of pictures.
        prompt: question for captions; None is `CAPTION_PROMPT`.
        pictures: where the pictures do not stand in the entry.

    Raises:
        EntryError: a missing or unknown key or role, an empty text, a slot without a picture or the reverse, a picture
            that is not there.
    """
    if not isinstance(entry, dict):
        raise EntryError("fields", f"an entry is {type(entry).__name__}, but must be an object: {_STYLES_HINT}")
    if "captions" in entry:
        said = _captions(entry["captions"], CAPTION_PROMPT if prompt is None else prompt)
    elif "messages" in entry or "conversations" in entry:
        key = "messages" if "messages" in entry else "conversations"
        said = [_dialogue(entry[key], key)]
    else:
        said = [_question_and_answer(entry)]
    own_names = [] if pictures is not None else _picture_names(entry)
    records = []
    for number, (turns, slots) in enumerate(said, 1):
        if pictures is None:
            images = tuple(finder.find(name) for name in _fill_slots(slots, own_names))
        else:
            images = tuple(pictures)
            _fill_slots(slots, [str(picture) for picture in images])
        name = str(entry.get("id", source)) + (f"#{number}" if len(said) > 1 else "")
        records.append(Record(name, images, _checked(turns), source))
    return records


Said = tuple[list[Turn], list[str | None]]
"""Turns with `<image>` still in them, and one item per picture slot: its name, or None for the next of "images"."""


def _question_and_answer(entry: dict[str, Any]) -> Said:
    """The flat styles."""
    question_key = _one_key(entry, QUESTION_KEYS)
    answer_key = _one_key(entry, ANSWER_KEYS)
    question, answer = entry[question_key], entry[answer_key]
    for key, value in ((question_key, question), (answer_key, answer)):
        if not isinstance(value, str):
            raise EntryError("fields", f"'{key}' is {value!r:.60} ({type(value).__name__}); it must be text")
    return [(question, answer)], [None] * question.count(SLOT)


def _captions(captions: Any, prompt: str) -> list[Said]:
    """Each caption on its own."""
    if not isinstance(captions, list) or not captions:
        raise EntryError("fields", "'captions' must be a list with at least one item of 'role' and 'content'")
    return [([(prompt, _content(item, "captions", number)[0])], []) for number, item in enumerate(captions, 1)]


def _dialogue(messages: Any, key: str) -> Said:
    """Messages in pairs; a system message is put before the first question, a line of its own."""
    if not isinstance(messages, list) or not messages:
        raise EntryError("fields", f"'{key}' must be a list with at least one question and answer")
    turns: list[Turn] = []
    slots: list[str | None] = []
    system, question = "", None
    for number, message in enumerate(messages, 1):
        text, named = _content(message, key, number)
        role = _role(message, key, number)
        if role == "system":
            if turns or question is not None:
                raise EntryError("fields", f"'{key}' item {number}: a system message must come first")
            system += text + "\n"
        elif role == "user":
            if question is not None:
                raise EntryError("fields", f"'{key}' item {number}: a second question where an answer was expected")
            question, system = system + text, ""
            slots += named
        else:
            if question is None:
                raise EntryError("fields", f"'{key}' item {number}: an answer without a question before it")
            turns.append((question, text))
            question = None
    if question is not None or not turns:
        raise EntryError("fields", f"'{key}' ends without an answer; the last item must be the assistant's")
    return turns, slots


def _role(message: dict[str, Any], key: str, number: int) -> str:
    role = message.get("role", message.get("from"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise EntryError("fields", f"'{key}' item {number}: role {role!r:.60} is not one of {', '.join(ROLES)}")
    return ROLES[role.lower()]


def _content(message: Any, key: str, number: int) -> tuple[str, list[str | None]]:
    """Text of a message with `<image>` for each picture, and the slots."""
    content = message.get("content", message.get("value")) if isinstance(message, dict) else None
    if isinstance(content, str):
        return content, [None] * content.count(SLOT)
    if not isinstance(content, list) or not content:
        raise EntryError("fields", f"'{key}' item {number} has no text ('content' or 'value')")
    texts: list[str] = []
    slots: list[str | None] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
            slots += [None] * part["text"].count(SLOT)
        elif kind in ("image", "image_url"):
            texts.append(SLOT)
            slots.append(_part_name(part))
        else:
            raise EntryError("fields", f"'{key}' item {number}: part {part!r:.60} is no text, image_url or image")
    return "\n".join(texts), slots


def _part_name(part: dict[str, Any]) -> str | None:
    """Name or URL in a picture part; None for a bare {"type": "image"}."""
    value = next((part[key] for key in ("image_url", "image", "url", "path") if part.get(key)), None)
    value = value.get("url") if isinstance(value, dict) else value
    if value is not None and not isinstance(value, str):
        raise EntryError("fields", f"picture part {part!r:.60} names its picture by {type(value).__name__}, not text")
    return value


def _picture_names(entry: dict[str, Any]) -> list[str]:
    """Names of an entry's own pictures."""
    value = next((entry[key] for key in IMAGE_KEYS if entry.get(key)), None)
    if value is None:
        other = [key for key, named in entry.items() if _LIKE_A_PICTURE.match(key) and named and isinstance(named, str)]
        if other:
            raise EntryError("fields", f"has '{other[0]}' but no picture in 'image'; rename it")
        return []
    items = value if isinstance(value, list) else [value]
    names = [item.get("path") if isinstance(item, dict) else item for item in items]
    if not all(isinstance(name, str) and name for name in names):
        raise EntryError("fields", f"the picture is {value!r:.60}; it must be a name or a list of names")
    return names


def _fill_slots(slots: list[str | None], names: list[str]) -> list[str]:
    """Pictures in the order of their slots; without slots, as they are listed."""
    if not slots:
        return names
    wanted = slots.count(None)
    if wanted != len(names):
        raise EntryError(
            "slots", f"{wanted} {SLOT} in the questions, but {len(names)} picture(s); give as many (or no {SLOT})"
        )
    rest = iter(names)
    return [next(rest) if slot is None else slot for slot in slots]


def _checked(turns: list[Turn]) -> tuple[Turn, ...]:
    """Turns without slots, none of them empty; a first question alone may be (a caption without one)."""
    cleaned = [(without_slots(question), answer) for question, answer in turns]
    for number, (question, answer) in enumerate(cleaned, 1):
        if not answer.strip():
            raise EntryError("empty", f"the answer of turn {number} is empty")
        if number > 1 and not question.strip():
            raise EntryError("empty", f"the question of turn {number} is empty")
    return tuple(cleaned)


def without_slots(text: str) -> str:
    """`text` without `<image>`: what stands before and after is joined by a newline if the slot was at one, else by a
    space. Text without a slot is left exactly as it is."""
    first, *others = text.split(SLOT)
    for piece in others:
        at_line = first.rstrip(" ").endswith("\n") or piece.lstrip(" ").startswith("\n")
        left, right = first.rstrip(), piece.lstrip()
        first = left + ("\n" if at_line else " ") + right if left and right else left or right
    return first


def _one_key(entry: dict[str, Any], keys: tuple[str, ...]) -> str:
    """The one of `keys` that an entry has."""
    present = [key for key in keys if key in entry]
    if len(present) == 1:
        return present[0]
    if present:
        raise EntryError("fields", f"has both '{present[0]}' and '{present[1]}'; keep the one that is meant")
    has = ", ".join(map(repr, list(entry)[:8])) or "nothing"
    raise EntryError("fields", f"has no '{keys[0]}' (or '{keys[1]}'), only {has}; {_STYLES_HINT}")
