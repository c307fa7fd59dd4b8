"""An entry of any of the known JSON styles -> records.

The style of an entry is seen from its keys:

    {"id", "prompt", "text", "image"}                                         the document's (also "question", "answer",
                                                                              and ms-swift's "query", "response")
    {"img", "prompt", "label"}                                                VisualGLM
    {"id", "image", "conversations": [{"from": "human", "value"}, ...]}       LLaVA (also with "role" and "content")
    {"messages": [{"role": "user", "content"}, ...], "images"}                OpenAI; content is text or a list of parts
    {"captions": [{"role": "caption", "content"}]}                            CogVLM-SFT-311K, one record per caption

Any of these may be a pair of answers (`preferences.py`).

The picture of any style may stand in "image", "images" or "img": a name, a list of names, or absent for text only.
A user's message may have such a key of its own (GLM-4's data): the picture stands in front of its text. Where questions
hold `<image>` (or another family's mark, see `marks.py`), there must be as many as pictures. They are taken out of the
text for the models that read all pictures before it; for the others a record keeps their places.

"objects" are ms-swift's names and boxes: they stand where `<ref-object>` and `<bbox>` do, or, in an entry that asks
nothing, are asked about as those of other annotations are (`grounding/`).

Also read: "history" ([question, answer] pairs before the entry's own turns), "system" (as a system message is: in the
place that the prompt style has for it, else in front of the first question, a line of its own), and of an answer
"loss", "weight" or "train" (`entry_keys.TRAINED_KEYS`): false or 0 means that it is not trained. Keys that would change
the meaning and that nobody here reads (`entry_keys.UNREAD`) are refused where they say something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sat_models.processing.prompts import Turn
from sat_models.training.boxed_text import BoxGroup
from sat_models.training.entry_keys import ANSWER_KEYS, is_trained, refuse_unread
from sat_models.training.grounding.asking import CAPTION_PROMPT, Asking
from sat_models.training.grounding.samples import records_of
from sat_models.training.grounding.swift import Objects, objects_of, refuse_marks, with_marks
from sat_models.training.image_names import Slot, fill_slots, image_names, part_name
from sat_models.training.marks import SLOT, check_answer, check_system, with_slots, without_slots
from sat_models.training.preferences import pair_of, paired
from sat_models.training.records import EntryError, ImageFile, ImageFinder, Record

QUESTION_KEYS = ("prompt", "question", "query")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_TEXT_KEYS = ("role", "from", "content", "value")
_DIALOGUES = ("captions", "messages", "conversations")
_STYLES_HINT = "an entry has 'prompt' and 'text', 'conversations', 'messages', or 'captions'"


@dataclass
class _Said:
    """The content of an entry.

    Attributes:
        turns: with `<image>` still in the questions.
        slots: one item per `<image>`: the name of its picture, its number in "images", or None for the next of them.
        untrained: numbers of turns, from 0, whose answers are not trained.
        system: what the first question begins with, its line end included; "" without a system text.
    """

    turns: list[Turn] = field(default_factory=list)
    slots: list[Slot] = field(default_factory=list)
    untrained: set[int] = field(default_factory=set)
    system: str = ""

    def ask(self, question: str, where: str) -> str:
        """A question with its slots, which are noted."""
        text, names = with_slots(question, where)
        self.slots += names
        return text

    def place(self, objects: Objects, images: Sequence[ImageFile]) -> list[list[BoxGroup]]:
        """Put names and marks of boxes where they belong; the boxes of each turn."""
        refuse_marks(self.system)
        self.turns, groups = objects.placed(self.turns, images)
        return groups

    def system_apart(self) -> tuple[str, str] | tuple[None, None]:
        """The system text and the first question without it; two None where there is none."""
        first = self.turns[0][0]
        if not self.system or not first.startswith(self.system):
            return None, None
        return self.system.removesuffix("\n"), without_slots(first[len(self.system) :])


def parse_entry(
    entry: Any,
    source: str,
    finder: ImageFinder,
    *,
    prompt: str | None = None,
    images: Sequence[ImageFile] | None = None,
    asking: Asking | None = None,
) -> list[Record]:
    """The records of one entry: one (of a pair of answers, too), one per caption, or those about its objects.

    Args:
        entry: parsed JSON.
        source: "file:line".
        finder: looks up the names of pictures.
        prompt: question for captions; None is `CAPTION_PROMPT`.
        images: where the pictures do not stand in the entry.
        asking: what is asked about the objects of an entry that asks nothing; None is the usual.

    Raises:
        EntryError: a missing or unknown key or role, an empty text, a slot without a picture or the reverse, a picture
            that is not there.
    """
    if not isinstance(entry, dict):
        raise EntryError("fields", f"an entry is {type(entry).__name__}, but must be an object: {_STYLES_HINT}")
    if (pair := pair_of(entry)) is not None:
        return [paired(pair, lambda one: parse_entry(one, source, finder, prompt=prompt, images=images))]
    refuse_unread(entry)
    if not is_trained(entry, ""):
        raise EntryError("empty", "none of its answers is trained")
    objects = objects_of(entry)
    if objects is not None:
        if not any(key in entry for key in (*_DIALOGUES, *QUESTION_KEYS, *ANSWER_KEYS)):
            files = [finder.find(name) for name in image_names(entry)] if images is None else images
            return list(records_of(objects.annotated(files, source), asking or Asking()))
        entry = with_marks(entry)
    said = _said(entry, prompt)
    own_names = [] if images is not None else image_names(entry)
    records = []
    for number, one in enumerate(said, 1):
        if images is None:
            found = tuple(finder.find(name) for name in fill_slots(one.slots, own_names))
        else:
            found = tuple(images)
            fill_slots(one.slots, [str(image) for image in found])
        name = str(entry.get("id", source)) + (f"#{number}" if len(said) > 1 else "")
        boxes = None if objects is None else one.place(objects, found)
        turns, untrained = _without_end(_checked(one.turns), one.untrained)
        placed = tuple(question for question, _ in one.turns[: len(turns)]) if one.slots else ()
        found = found[: sum(question.count(SLOT) for question in placed)] if placed else found
        kept = None if boxes is None else tuple(group for own in boxes[: len(turns)] for group in own)
        records.append(Record(name, found, turns, source, untrained, *one.system_apart(), placed, kept))
    return records


def _said(entry: dict[str, Any], prompt: str | None) -> list[_Said]:
    """The content of an entry: one dialogue, or its captions."""
    styles = [key for key in _DIALOGUES if entry.get(key) not in (None, [])]
    if len(styles) > 1:
        raise EntryError("fields", f"has both '{styles[0]}' and '{styles[1]}'; keep the one that is meant")
    if "captions" in entry:
        if entry.get("history"):
            raise EntryError("fields", "has 'captions' and 'history'; captions are trained one by one, without history")
        said = _captions(entry["captions"], _system(entry), CAPTION_PROMPT if prompt is None else prompt)
    elif "messages" in entry or "conversations" in entry:
        key, before = "messages" if "messages" in entry else "conversations", _before(entry)
        said = [_dialogue(entry[key], key, before)]
    else:
        said = [_question_and_answer(entry, _before(entry))]
    return said


def _before(entry: dict[str, Any]) -> _Said:
    """The turns of "history"; the entry's "system" stands in front of the first question."""
    said, past = _Said(system=_system(entry)), entry.get("history") or []
    if not isinstance(past, list):
        raise EntryError("fields", f"'history' is {past!a:.60}; it must be a list of [question, answer] pairs")
    system = said.system
    for number, turn in enumerate(past, 1):
        where = f"'history' item {number}"
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(part, str) for part in turn):
            raise EntryError("fields", f"{where} is {turn!a:.60}; it must be a [question, answer] pair of texts")
        check_answer(turn[1], where)
        said.turns.append((said.ask(system + turn[0], where), turn[1]))
        system = ""
    return said


def _system(entry: dict[str, Any]) -> str:
    """The entry's own system text, as the beginning of a question; "" without one."""
    system = entry.get("system")
    if system is not None and not isinstance(system, str):
        raise EntryError("fields", f"'system' is {system!a:.60}; it must be text")
    return check_system(system, "'system'") + "\n" if system else ""


def _question_and_answer(entry: dict[str, Any], said: _Said) -> _Said:
    """The flat styles."""
    question_key = _one_key(entry, QUESTION_KEYS)
    answer_key = _one_key(entry, ANSWER_KEYS)
    question, answer = entry[question_key], entry[answer_key]
    for key, value in ((question_key, question), (answer_key, answer)):
        if not isinstance(value, str):
            raise EntryError("fields", f"'{key}' is {value!a:.60} ({type(value).__name__}); it must be text")
    check_answer(answer, f"'{answer_key}'")
    system = "" if said.turns else said.system
    said.turns.append((said.ask(system + question, f"'{question_key}'"), answer))
    return said


def _captions(captions: Any, system: str, prompt: str) -> list[_Said]:
    """Each caption on its own."""
    if not isinstance(captions, list) or not captions:
        raise EntryError("fields", "'captions' must be a list with at least one item of 'role' and 'content'")
    said = []
    for number, item in enumerate(captions, 1):
        answer, slots = _content(item, "captions", number)
        check_answer(SLOT if slots else answer, f"'captions' item {number}")
        said.append(_Said([(system + prompt, answer)], system=system))
    return said


def _dialogue(messages: Any, key: str, said: _Said) -> _Said:
    """Messages in pairs; a system message is put before the first question, a line of its own."""
    if not isinstance(messages, list) or not messages:
        raise EntryError("fields", f"'{key}' must be a list with at least one question and answer")
    question, first, system = None, len(said.turns), "" if said.turns else said.system
    for number, message in enumerate(messages, 1):
        where = f"'{key}' item {number}"
        text, named = _content(message, key, number)
        role = _role(message, key, number)
        refuse_unread(message, f"{where}: ")
        trained = is_trained(message, f"{where}: ", answer=role == "assistant")
        if role == "system":
            if len(said.turns) > first or question is not None:
                raise EntryError("fields", f"{where}: a system message must come first")
            system += check_system(SLOT if named else text, where) + "\n"
            said.system = system
        elif role == "user":
            if question is not None:
                raise EntryError("fields", f"{where}: a second question where an answer was expected")
            question, system = _asked(said, system + text, named, where), ""
        else:
            if question is None:
                raise EntryError("fields", f"{where}: an answer without a question before it")
            check_answer(SLOT if named else text, where)
            said.untrained |= set() if trained else {len(said.turns)}
            said.turns.append((question, text))
            question = None
    if question is not None or len(said.turns) == first:
        raise EntryError("fields", f"'{key}' ends without an answer; the last item must be the assistant's")
    return said


def _asked(said: _Said, text: str, named: list[Slot], where: str) -> str:
    """A question whose pictures are noted: those of its parts (`named`), or those of the marks in its text."""
    before = len(said.slots)
    question = said.ask(text, where)
    if named:
        said.slots[before:] = named
    return question


def _role(message: dict[str, Any], key: str, number: int) -> str:
    role = message.get("role", message.get("from"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise EntryError("fields", f"'{key}' item {number}: role {role!a:.60} is not one of {', '.join(ROLES)}")
    return ROLES[role.lower()]


def _content(message: Any, key: str, number: int) -> tuple[str, list[Slot]]:
    """Text of a message with `<image>` for each of its own pictures, and their names; no names for plain text."""
    content = message.get("content", message.get("value")) if isinstance(message, dict) else None
    own = image_names({k: v for k, v in message.items() if k not in _TEXT_KEYS}) if isinstance(message, dict) else []
    if isinstance(content, str):
        text, marks = with_slots(content, f"'{key}' item {number}") if own else (content, [])
        return (text if marks else SLOT * len(own) + text), fill_slots(marks, own)
    if own:
        raise EntryError("fields", f"'{key}' item {number} has pictures beside its parts; keep the one that is meant")
    if not isinstance(content, list) or not content:
        raise EntryError("fields", f"'{key}' item {number} has no text ('content' or 'value')")
    texts: list[str] = []
    slots: list[Slot] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            text, names = with_slots(part["text"], f"'{key}' item {number}")
            texts.append(text)
            slots += names
        elif kind in ("image", "image_url"):
            texts.append(SLOT)
            slots.append(part_name(part))
        else:
            raise EntryError("fields", f"'{key}' item {number}: part {part!a:.60} is no text, image_url or image")
    return "\n".join(texts), slots


def _checked(turns: list[Turn]) -> tuple[Turn, ...]:
    """Turns without slots, none of them empty; a first question alone may be (a caption without one)."""
    cleaned = [(without_slots(question), answer) for question, answer in turns]
    for number, (question, answer) in enumerate(cleaned, 1):
        if not _says_something(answer):
            raise EntryError("empty", f"the answer of turn {number} is empty")
        if number > 1 and not _says_something(question):
            raise EntryError("empty", f"the question of turn {number} is empty")
    return tuple(cleaned)


def _says_something(text: str) -> bool:
    """Whether there is more than spaces and marks of no width."""
    return any(character.isprintable() and not character.isspace() for character in text)


def _without_end(turns: tuple[Turn, ...], untrained: set[int]) -> tuple[tuple[Turn, ...], tuple[int, ...]]:
    """Turns up to the last that is trained, since nothing learns from those behind it; and those that are not."""
    count = next((count for count in range(len(turns), 0, -1) if count - 1 not in untrained), 0)
    if not count:
        raise EntryError("empty", "none of its answers is trained")
    return turns[:count], tuple(sorted(number for number in untrained if number < count))


def _one_key(entry: dict[str, Any], keys: tuple[str, ...]) -> str:
    """The one of `keys` that an entry has."""
    present = [key for key in keys if key in entry]
    if len(present) == 1:
        return present[0]
    if present:
        raise EntryError("fields", f"has both '{present[0]}' and '{present[1]}'; keep the one that is meant")
    has = ", ".join(map(repr, list(entry)[:8])) or "nothing"
    raise EntryError("fields", f"has no '{keys[0]}' (or '{keys[1]}'), only {has}; {_STYLES_HINT}")
