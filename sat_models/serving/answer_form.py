"""The form of an answer as clients ask for it: OpenAI's `response_format`, vLLM's `guided_…` and `structured_outputs`.

`guided_boxes` and `structured_outputs.boxes` are ours: "only" (boxes and nothing else) or "in_text" (text in which
every box is whole).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sat_models.errors import InputError
from sat_models.generation.strict.constraint import Constraint

FIELDS = ("response_format", "guided_json", "guided_regex", "guided_choice", "guided_boxes", "structured_outputs")
"""Fields of a request that ask for a form."""
_BOXES = ("only", "in_text")
_FORMATS = ("text", "json_object", "json_schema")
_NAMES = {"json": Constraint.json, "regex": Constraint.regex, "choice": Constraint.choice}
_ASKS_FOR_NOTHING = {
    "disable_any_whitespace": (True, False),  # white space is written in one way
    "disable_fallback": (True, False),  # there is none
    "disable_additional_properties": (False,),
}
"""Other keys of `structured_outputs`, and their values that change nothing here."""


def constraint_of(asked: Mapping[str, Any]) -> Constraint | None:
    """What the fields of a request ask for.

    Args:
        asked: fields of `FIELDS` by name; None for one that was left out.

    Raises:
        InputError: a value that none of these APIs allows, or several forms at once.
    """
    readers: dict[str, Callable[[Any], Constraint | None]] = {
        "response_format": _of_format,
        "guided_boxes": _boxes,
        "structured_outputs": _of_structured,
        **{f"guided_{name}": make for name, make in _NAMES.items()},
    }
    found: dict[str, Constraint] = {}
    for name in FIELDS:
        if asked.get(name) is not None and (constraint := readers[name](asked[name])) is not None:
            found[name] = constraint
    if len(found) > 1:
        raise InputError(f"{' and '.join(found)} each ask for a form of the answer; send one of them.")
    return next(iter(found.values()), None)


def _of_format(given: Any) -> Constraint | None:
    """OpenAI's `response_format`."""
    kind = given.get("type") if isinstance(given, dict) else None
    if kind not in _FORMATS:
        raise InputError(f"response_format is {given!r:.80}; it must be an object whose type is one of {_FORMATS}.")
    _refuse_others(given, {"type", "json_schema"} if kind == "json_schema" else {"type"}, "response_format")
    if kind == "text":
        return None
    if kind == "json_object":
        return Constraint.json()
    inner = given.get("json_schema")
    if not isinstance(inner, dict) or inner.get("schema") is None:
        raise InputError(
            f"response_format.json_schema is {inner!r:.80}; it must be an object with a 'schema', such as "
            '{"name": "answer", "strict": true, "schema": {"type": "object", …}}.'
        )
    _refuse_others(inner, {"name", "description", "schema", "strict"}, "response_format.json_schema")
    return Constraint.json(inner["schema"])


def _of_structured(given: Any) -> Constraint | None:
    """vLLM's `structured_outputs`."""
    if not isinstance(given, dict):
        raise InputError(f"structured_outputs is {given!r:.80}; it must be an object with one of {_keys()}.")
    asked = {name: value for name, value in given.items() if value is not None}
    asked = {name: value for name, value in asked.items() if value not in _ASKS_FOR_NOTHING.get(name, ())}
    _refuse_others(asked, {*_NAMES, "json_object", "boxes"}, "structured_outputs")
    if asked.get("json_object") is False:
        del asked["json_object"]
    if len(asked) != 1:
        raise InputError(f"structured_outputs asks for {', '.join(asked) or 'nothing'}; it must have one of {_keys()}.")
    ((name, value),) = asked.items()
    if name == "json_object":
        if value is not True:
            raise InputError(f"structured_outputs.json_object is {value!r:.40}; it must be true or false.")
        return Constraint.json()
    return _boxes(value) if name == "boxes" else _NAMES[name](value)


def _keys() -> str:
    return ", ".join((*_NAMES, "json_object", "boxes"))


def _boxes(given: Any) -> Constraint:
    if given not in _BOXES:
        raise InputError(f"boxes are asked for as {given!r:.40}; allowed: {', '.join(_BOXES)}.")
    return Constraint.boxes(in_text=given == "in_text")


def _refuse_others(given: Mapping[str, Any], known: set[str], place: str) -> None:
    others = sorted(name for name, value in given.items() if name not in known and value is not None)
    if others:
        raise InputError(f"{place} has {', '.join(others)[:80]}, which is not known here; leave it out.")
