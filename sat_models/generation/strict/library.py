"""Grammars that `llguidance` knows: JSON by a schema, and regular expressions.

It writes no JSON that readers refuse (raw control letters in a string), says which tokens must follow, and does the
same on every process. docs/architecture.md says what it was compared with.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from sat_models.errors import InputError, MissingPackageError, ZooError
from sat_models.generation.strict.spelling import Spelling

_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As Python's json writes it. There is one way to put white space, so none of it is sampled."""
_REMEDY = {
    "json": "Leave out what is unknown there, and give bounds that some value meets; docs/serving.md says what goes.",
    "regex": "Write it in Rust's syntax, without look-around and back references; the whole answer matches it.",
}


def _library() -> ModuleType:
    try:
        import llguidance
    except ImportError as error:
        raise MissingPackageError("llguidance", "strict", "An answer by a JSON schema or a regex") from error
    return llguidance


def grammar_text(kind: str, source: str, lead: str = "") -> str:
    """A schema or regex as the library reads it.

    Args:
        kind: "json" or "regex".
        source: the schema as JSON, or the regex.
        lead: what stands in front of it.

    Raises:
        InputError: it cannot be compiled.
        MissingPackageError: llguidance is not installed.
    """
    matcher = _library().LLMatcher
    if kind == "regex":
        rule = json.loads(matcher.grammar_from_regex(source))["grammars"][0]["lark_grammar"].removeprefix("start: ")
    else:
        rule = f"%json {_with_spaces(source)}"
    start = f"{json.dumps(lead)} answer" if lead else "answer"
    grammar = matcher.grammar_from_lark(f"start: {start}\nanswer: {rule}")
    if problem := matcher.validate_grammar(grammar):
        raise _refused(kind, source, problem)
    return grammar


def _with_spaces(source: str) -> str:
    """A schema that says how white space is written."""
    schema = json.loads(source)
    if not isinstance(schema, dict):
        return source
    return json.dumps({**schema, "x-guidance": {**(schema.get("x-guidance") or {}), **_WRITTEN}})


def _refused(kind: str, source: str, problem: str) -> InputError:
    what = "JSON schema" if kind == "json" else "regex"
    shown = source if len(source) <= 60 else source[:60] + "…"
    reason = problem.split("\n   1 |")[0].partition("failed to compile JSON schema: ")
    reason = " ".join((reason[2] or reason[0]).split())[:160]
    return InputError(f"The {what} {shown} cannot be compiled: {reason}. {_REMEDY[kind]}")


class _Tokens:
    """A tokenizer as the library asks for it."""

    def __init__(self, spelling: Spelling, end: int) -> None:
        self._spelling = spelling
        self.eos_token_id, self.bos_token_id = end, None
        self.special_token_ids = [token for token, text in enumerate(spelling.texts) if not text]
        self.tokens = [text or b"\xff<%d>" % token for token, text in enumerate(spelling.texts)]

    def __call__(self, text: bytes | str) -> list[int]:
        return self._spelling.encode(text.decode() if isinstance(text, bytes) else text)


class LibraryTokenizer:
    """A vocabulary as the library walks it; made once for all grammars.

    Args:
        spelling: what the tokens write.
        end: the id of an end token.
    """

    def __init__(self, spelling: Spelling, end: int) -> None:
        library = _library()
        self.size = spelling.size
        self._wrapped = library.LLTokenizer(library.TokenizerWrapper(_Tokens(spelling, end)), eos_token=end)

    def matcher(self, kind: str, source: str, lead: str) -> Any:
        """At the beginning of a grammar. Raises as `grammar_text`, and InputError for one that is too large."""
        matcher = _library().LLMatcher(self._wrapped, grammar_text(kind, source, lead), log_level=0)
        if matcher.is_error():
            raise _refused(kind, source, matcher.get_error())
        return matcher


class LibraryGrammar:
    """A compiled schema or regex.

    Args:
        tokenizer: of the model.
        kind, source, lead: as in `grammar_text`.

    Raises:
        InputError, MissingPackageError: as `grammar_text`.
    """

    def __init__(self, tokenizer: LibraryTokenizer, kind: str, source: str, lead: str) -> None:
        self._size, self._lock = tokenizer.size, threading.Lock()
        self._first = tokenizer.matcher(kind, source, lead)

    def begin(self) -> LibraryState:
        """At the beginning of an answer."""
        with self._lock:
            return LibraryState(self._first.deep_copy(), self._size)


class LibraryState:
    """Where one answer stands in a grammar of the library; a `GrammarState`."""

    needs = 0

    def __init__(self, matcher: Any, size: int) -> None:
        self._matcher, self._size = matcher, size

    @property
    def accepting(self) -> bool:
        """See `GrammarState`."""
        return self._matcher.is_accepting()

    @property
    def complete(self) -> bool:
        """See `GrammarState`."""
        return self._matcher.is_stopped()

    def allowed(self, left: int) -> np.ndarray:
        """See `GrammarState`; the library does not know how long what is left may be."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        return np.unpackbits(bits, count=self._size, bitorder="little").astype(bool)

    def take(self, token: int) -> None:
        """See `GrammarState`."""
        self._matcher.consume_token(token)
        self._check()

    def must(self) -> tuple[int, ...]:
        """See `GrammarState`."""
        return tuple(self._matcher.compute_ff_tokens())

    def ends_after(self, tokens: Sequence[int]) -> bool:
        """See `GrammarState`."""
        self._matcher.consume_tokens(list(tokens))
        ends = self._matcher.is_stopped()
        self._matcher.rollback(len(tokens))
        self._check()
        return ends

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().split())[:200]
            raise ZooError(f"The answer's grammar became too large while it was followed: {reason}. Simplify it.")
