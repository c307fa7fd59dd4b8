"""What the bodies of all of OpenAI's routes share: strict JSON, and parameters that ask for nothing.

A parameter that would change the answer and cannot be honoured is refused by name. What asks for nothing is let
through: real clients send their defaults along, `null` for all that they know.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from sat_models.errors import InputError
from sat_models.text import DoubleKeyError, is_utf8, unique_keys


def _no_truth(given: Any) -> Any:
    """`true` is a number to Python, and none to those who send numbers."""
    if isinstance(given, bool):
        raise ValueError(f"it is {str(given).lower()}; it must be a number")
    return given


Whole = Annotated[int, BeforeValidator(_no_truth)]
Real = Annotated[float, BeforeValidator(_no_truth)]


class Strict(BaseModel):
    """An object of a body; it has no fields but its own."""

    model_config = ConfigDict(extra="forbid")


class Body(Strict):
    """The body of a request."""

    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Parameters that cannot be honoured, with the values that ask for nothing; `null` does everywhere."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_missing_here(cls, body: Any) -> Any:
        """Takes away what asks for nothing; says no to the others by name."""
        if not isinstance(body, dict):
            return body
        known = {name: body[name] for name in body if name in cls.model_fields or not is_utf8(name)}
        if place := _unwritable(known):
            raise ValueError(f"{place} holds half of a surrogate pair, which is no text; send whole characters")
        asked = {name: value for name, value in body.items() if value is not None}
        for name, neutral in cls.NEUTRAL.items():
            if name in asked and asked.pop(name) not in neutral:
                raise ValueError(f"'{name}' is not supported by these models; leave it out")
        return asked


Kind = TypeVar("Kind", bound=Body)


def read_body(raw: bytes, content_type: str, kind: type[Kind]) -> Kind:
    """The request in the bytes of a body; takes a moment for a large one.

    Raises:
        InputError: no JSON, or not called so (a browser asks another host before it sends JSON, but not before text).
        ValidationError: a request that cannot be taken.
    """
    if "json" not in content_type.lower():
        raise InputError(f"The Content-Type is '{content_type[:80]}'; send JSON as application/json.")
    try:
        body = json.loads(raw, object_pairs_hook=unique_keys)
    except DoubleKeyError as error:
        raise InputError(f"In the body {error}. Send one of them.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"The body is no JSON: {str(error)[:200]}.") from error
    return kind.model_validate(body)


def shown(kind: type[Body], path: str) -> dict[str, Any]:
    """A route's body as `/openapi.json` shows it."""
    place = path.replace("/", "~1")
    template = f"#/paths/{place}/post/requestBody/content/application~1json/schema/$defs/{{model}}"
    form = kind.model_json_schema(ref_template=template)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": form}}}}


def _unwritable(body: Any) -> str | None:
    """Where in a body there is text that UTF-8 cannot write: `messages.0.content`; None for nowhere."""
    if is_utf8(json.dumps(body, ensure_ascii=False)):
        return None
    left: list[tuple[str, Any]] = [("", body)]
    while left:
        place, value = left.pop()
        if isinstance(value, str) and not is_utf8(value):
            return place
        if isinstance(value, dict):
            if not all(map(is_utf8, value)):
                return f"a name in {place or 'the body'}"
            left += [(f"{place}.{name}".lstrip("."), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            left += [(f"{place}.{number}", inner) for number, inner in enumerate(value)]
    return None


def error_body(message: str, *, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
