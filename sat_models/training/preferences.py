"""A pair of answers in one JSON entry -> two plain entries, with the better answer and with the other one.

    {"messages": […, the chosen answer], "rejected_response": answer}      ms-swift; also beside "conversations" and
                                                                           "query", "response"
    {"messages": […], "rejected_messages": […]}                            ms-swift: the same up to the last answer
    {"prompt": [messages], "chosen": [answer], "rejected": [answer]}       TRL, conversational
    {"chosen": [messages], "rejected": [messages]}                         TRL: both begin with the prompt
    {"prompt": text, "chosen": text, "rejected": text}                     TRL, plain; also "question", "query"
    {"conversations": [messages], "chosen": answer, "rejected": answer}    LLaMA-Factory; also "messages"

An answer is text or a message. Images, history and system text stand where they do in a plain entry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sat_models.training.entry_keys import ANSWER_KEYS, says_nothing
from sat_models.training.records import EntryError, Record

_REJECTED = ("rejected_response", "rejected_messages", "rejected")
_DIALOGUES = ("messages", "conversations", "prompt")
Entry = dict[str, Any]


def pair_of(entry: Entry) -> tuple[Entry, Entry] | None:
    """The entries of the chosen and of the rejected answer; None for an entry that is no pair.

    Raises:
        EntryError: half of a pair, answers to different questions, or forms that do not fit each other.
    """
    given = [key for key in _REJECTED if not says_nothing(entry.get(key))]
    chosen = not says_nothing(entry.get("chosen"))
    if not given and not chosen:
        return None
    if len(given) > 1:
        raise EntryError("fields", f"has both '{given[0]}' and '{given[1]}'; keep the one that is meant")
    if not given or (given == ["rejected"]) != chosen:
        raise EntryError(
            "fields",
            f"has '{given[0] if given else 'chosen'}', which is half of a pair: 'chosen' goes with 'rejected', and "
            "'rejected_response' or 'rejected_messages' with the answer that ends the entry",
        )
    for key in ("captions", "objects", "rejected_images"):
        if not says_nothing(entry.get(key)):
            raise EntryError("fields", f"'{given[0]}' stands beside '{key}', which is not read in a pair; remove one")
    rest = {key: value for key, value in entry.items() if key not in (*_REJECTED, "chosen")}
    make = {"rejected_response": _response, "rejected_messages": _messages}.get(given[0])
    return make(rest, entry[given[0]]) if make else _chosen(rest, entry["chosen"], entry["rejected"])


def paired(pair: tuple[Entry, Entry], read: Callable[[Entry], list[Record]]) -> Record:
    """The record of both entries of a pair.

    Args:
        read: makes records of a plain entry.

    Raises:
        EntryError: as `read`, equal answers, or a chosen answer that is not trained.
    """
    (record,) = read(pair[0])
    try:
        (other,) = read(pair[1])
    except EntryError as error:
        raise EntryError(error.kind, f"with the rejected answer: {error}") from error
    if len(record.turns) != len(other.turns):
        raise EntryError("fields", "its last answer is not trained, but is one of a pair; keep one of the two")
    (*_, (_, chosen)), (*_, (_, rejected)) = record.turns, other.turns
    if chosen.strip() == rejected.strip():
        raise EntryError(
            "fields",
            f"the chosen and the rejected answer are both {chosen!a:.60}; those of a pair must differ, or neither is "
            "better: mend or remove it",
        )
    return replace(record, rejected=rejected)


def _response(rest: Entry, rejected: Any) -> tuple[Entry, Entry]:
    """The rejected answer takes the place of the entry's own."""
    key = _dialogue_key(rest)
    if key is not None:
        return rest, {**rest, key: [*rest[key][:-1], *_answer(rejected, "rejected_response")]}
    plain = {name: value for name, value in rest.items() if name not in ANSWER_KEYS}
    return rest, {**plain, ANSWER_KEYS[0]: rejected}


def _messages(rest: Entry, rejected: Any) -> tuple[Entry, Entry]:
    """The rejected answer ends a whole dialogue."""
    key = _dialogue_key(rest)
    if key is None:
        raise EntryError("fields", "has 'rejected_messages' without 'messages'; a pair has both")
    _check_same_question(rest[key], rejected, key, "rejected_messages")
    return rest, {**rest, key: rejected}


def _chosen(rest: Entry, chosen: Any, rejected: Any) -> tuple[Entry, Entry]:
    """Both answers stand beside what asks, or behind it in messages of their own."""
    key = _dialogue_key(rest)
    if twice := next((name for name in ANSWER_KEYS if name in rest), None):
        raise EntryError("fields", f"has both '{twice}' and 'chosen'; keep the one that is meant")
    if key is None and isinstance(chosen, str):
        return {**rest, ANSWER_KEYS[0]: chosen}, {**rest, ANSWER_KEYS[0]: rejected}
    if key is None and not isinstance(chosen, list):
        raise EntryError("fields", f"'chosen' is {chosen!a:.60}, and no 'prompt', 'messages' or 'conversations' asks")
    asked = rest[key] if key else []
    both = [_answer(chosen, "chosen"), _answer(rejected, "rejected")]
    _check_same_question(*both, "chosen", "rejected")
    if isinstance(rest.get("prompt"), str):
        key = "prompt"
        if len(both[0]) == 1:
            asked = [{"role": "user", "content": rest["prompt"]}]
        elif _text(both[0][0]) != rest["prompt"]:
            raise EntryError("fields", "'prompt' is not the first message of 'chosen'; keep the one that is meant")
    plain = {name: value for name, value in rest.items() if name != key}
    return {**plain, "messages": [*asked, *both[0]]}, {**plain, "messages": [*asked, *both[1]]}


def _dialogue_key(entry: Entry) -> str | None:
    """The key of an entry's messages; None for one question in plain text."""
    return next((key for key in _DIALOGUES if isinstance(entry.get(key), list) and entry[key]), None)


def _answer(answer: Any, key: str) -> list[Any]:
    """An answer as messages."""
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    if isinstance(answer, dict):
        return [answer]
    if not isinstance(answer, list) or not answer:
        raise EntryError("fields", f"'{key}' is {answer!a:.60}; it must be the text or the message of an answer")
    return answer


def _check_same_question(one: Any, other: Any, name: str, other_name: str) -> None:
    if not isinstance(other, list) or one[:-1] != other[:-1]:
        raise EntryError(
            "fields", f"'{name}' and '{other_name}' differ before their last answer; a pair is about one question"
        )


def _text(message: Any) -> Any:
    return message.get("content", message.get("value")) if isinstance(message, dict) else None
