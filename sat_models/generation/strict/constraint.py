"""What form an answer is to have, as callers say it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sat_models.errors import InputError
from sat_models.processing.box_forms import BoxForm
from sat_models.text import DoubleKeyError, unique_keys

Kind = Literal["json", "regex", "choice", "boxes", "boxes in text"]


@dataclass(frozen=True)
class Constraint:
    """The form of an answer: `Constraint.json(schema)`, `.regex(…)`, `.choice([…])`, `.boxes()`.

    Attributes:
        kind: which of them.
        source: the schema as JSON, the regex, or the texts to choose from.
        form: how boxes are written; None is filled in by the model that is asked.
    """

    kind: Kind
    source: str | tuple[str, ...] = ""
    form: BoxForm | None = None

    @classmethod
    def json(cls, schema: Any = None) -> Constraint:
        """JSON that a schema allows.

        Args:
            schema: a JSON schema as a dictionary or as text, or a pydantic model; None: any object.

        Raises:
            InputError: it is none of these.
        """
        if schema is None:
            schema = {"type": "object"}
        if hasattr(schema, "model_json_schema"):
            schema = schema.model_json_schema()
        if isinstance(schema, str):
            schema = _read_json(schema)
        if not isinstance(schema, Mapping | bool):
            raise InputError(
                f"The JSON schema is {schema!r:.80}; it must be an object, such as "
                '{"type": "object", "properties": {"color": {"type": "string"}}, "required": ["color"]}.'
            )
        try:
            return cls("json", json.dumps(schema, ensure_ascii=False, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"The JSON schema cannot be written as JSON: {error}. Use plain values in it.") from error

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Text that a regular expression matches as a whole.

        Raises:
            InputError: no text, or an empty one.
        """
        if not isinstance(pattern, str) or not pattern:
            raise InputError(f"The regex is {pattern!r:.80}; it must be a text that is not empty, such as '[0-9]+ cm'.")
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Constraint:
        """One of several texts.

        Raises:
            InputError: none, or one that is empty, no text, or has white space at its ends.
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise InputError(f"The choices are {texts!r:.80}; they must be a list of at least one text.")
        for text in texts:
            if not isinstance(text, str) or not text or text != text.strip():
                raise InputError(
                    f"One of the choices is {text!r:.80}; each must be a text that is not empty and has no white "
                    "space at its ends."
                )
        return cls("choice", tuple(texts))

    @classmethod
    def boxes(cls, *, in_text: bool = False) -> Constraint:
        """Boxes as the model's family writes them.

        Args:
            in_text: free text may stand around them, and there may be none; False: one box or more, and nothing else.
        """
        return cls("boxes in text" if in_text else "boxes")

    def in_form(self, form: BoxForm) -> Constraint:
        """This constraint, with boxes as a family writes them."""
        return replace(self, form=form) if self.kind.startswith("boxes") and self.form is None else self

    @property
    def holds_text(self) -> bool:
        """Free text may stand in the answer."""
        return self.kind == "boxes in text"

    def refuse_stops(self, stops: Sequence[str]) -> None:
        """Raises InputError for a caller's stop strings: they would cut an answer off that is not whole."""
        if stops:
            raise InputError(
                f"The stop strings {list(stops)!r:.80} and {self} were both given; the form of the answer says where "
                "it ends. Leave out one of them."
            )

    def __str__(self) -> str:
        what = {"json": "its JSON schema", "regex": "its regex", "choice": "its list of choices"}
        return what.get(self.kind, "the grammar of boxes")


def as_constraint(value: object) -> Constraint | None:
    """A `constraint` argument, checked. Raises InputError for what is no `Constraint`."""
    if value is None or isinstance(value, Constraint):
        return value
    raise InputError(
        f"constraint is {value!r:.80}; it must be made by Constraint.json(schema), Constraint.regex(pattern), "
        "Constraint.choice([text, …]) or Constraint.boxes(), from sat_models.zoo."
    )


def _read_json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except DoubleKeyError as error:
        raise InputError(f"In the JSON schema {error}. Keep one of them.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"The JSON schema {text[:80]!r} is no JSON: {error}. Give an object in JSON.") from error
