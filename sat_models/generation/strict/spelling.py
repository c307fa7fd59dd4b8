"""What each token of a tokenizer writes, so that a grammar of letters can say which tokens may come.

A *symbol* is one byte, or one special token, as a character: `chr(byte)`, or `chr(256 + id)`. Texts of symbols sort, so
that all tokens that begin alike stand side by side.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from functools import cached_property

from sat_models.errors import ConfigError
from sat_models.processing.tokens import Tokenizer

_FIRST_SPECIAL = 256
_UNKNOWN = " \u2047 ".encode()
"""Sentencepiece writes a piece that it does not know so."""
_IN_FRONT = "\x02"
"""A letter that no piece of several holds: what is encoded behind it begins no text."""


def special_id(symbol: str) -> int | None:
    """The id of a special token's symbol; None for a byte."""
    return ord(symbol) - _FIRST_SPECIAL if ord(symbol) >= _FIRST_SPECIAL else None


def symbols_of(text: str) -> str:
    """A text as symbols, one for each of its bytes in UTF-8."""
    return text.encode().decode("latin-1")


class Spelling:
    """The tokens of one tokenizer by what they write. Reading it takes a moment for a large vocabulary.

    Attributes:
        texts: what each token writes, by id; b"" for special ones, and for a second token of the same byte.
        lead: what an answer begins with and its text does not hold: the space that some tokenizers put in front.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = weakref.ref(tokenizer)  # as long as it lives, what is kept for it lives
        self.lead = " " if tokenizer.adds_space else ""
        read = [tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)]
        whole = {data for data, is_part in read if not is_part}
        # A piece stands for its byte where there is one; some bytes alone do not decode as the piece does.
        self.texts = [b"" if (part and data in whole) or data == _UNKNOWN else data for data, part in read]

    @property
    def size(self) -> int:
        """One past the largest id."""
        return len(self.texts)

    @cached_property
    def _sorted(self) -> tuple[list[str], list[int]]:
        """Symbols of the tokens in order, and their ids."""
        spelled = sorted((text.decode("latin-1"), token) for token, text in enumerate(self.texts) if text)
        return [text for text, _ in spelled], [token for _, token in spelled]

    @property
    def texts_in_order(self) -> list[str]:
        """Symbols of all tokens that write something, sorted."""
        return self._sorted[0]

    @property
    def ids_in_order(self) -> list[int]:
        """Their ids."""
        return self._sorted[1]

    def special(self, name: str) -> str | None:
        """The symbol of a special token; None where the tokenizer has none of that name."""
        try:
            return chr(_FIRST_SPECIAL + self._tokenizer().special_id(name))
        except ConfigError:
            return None

    def beginning_with(self, start: str, low: int = 0, high: int | None = None) -> tuple[int, int]:
        """Where the texts stand that begin with `start`: first place and one past the last, within `low` and `high`."""
        texts = self.texts_in_order
        high = len(texts) if high is None else high
        return bisect_left(texts, start, low, high), bisect_left(texts, start + "\uffff", low, high)

    def encode(self, text: str) -> list[int]:
        """Ids of a text in the middle of an answer: no space is put in front."""
        return self._tokenizer().encode(_IN_FRONT + text)[len(self._front) :]

    @cached_property
    def _front(self) -> list[int]:
        return self._tokenizer().encode(_IN_FRONT)

    def sizes_at(self, text: str, start: int) -> list[int]:
        """How many symbols of a text the tokens that fit at a place write; 1 for a special token's."""
        if special_id(text[start]) is not None:
            return [1]
        last = min(self._longest, len(text) - start)
        return [size for size in range(1, last + 1) if text[start : start + size] in self._known]

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.texts_in_order)

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.texts_in_order), default=0)
