"""Small grammars of letters, read one symbol at a time: what may come next is asked for, never listed ahead.

A state says all that matters of what was read. States are values that compare and hash.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Sequence
from typing import Protocol


class Automaton(Protocol):
    """A grammar of symbols (see `spelling`)."""

    start: Hashable

    def symbols(self, state: Hashable) -> str:
        """Symbols that may follow, and perhaps some that may not."""
        ...

    def leaving(self, state: Hashable) -> str | None:
        """None where only `symbols` may follow. Else every byte may, and leads back to the state but for these."""
        ...

    def step(self, state: Hashable, symbol: str) -> Hashable | None:
        """The state behind one more symbol; None where it may not follow."""
        ...

    def accepts(self, state: Hashable) -> bool:
        """What was read is whole: the answer may end."""
        ...

    def rest(self, state: Hashable) -> str:
        """Few symbols that make it whole; their first leads to a state whose rest is what is left of them."""
        ...


class OneOf:
    """One of several texts; a state is what was read.

    Args:
        texts: symbols of each.
    """

    start = ""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = sorted(set(texts))
        self._whole = frozenset(texts)

    def _with(self, read: str) -> Sequence[str]:
        """The texts that begin with what was read."""
        return self._texts[bisect_left(self._texts, read) : bisect_right(self._texts, read + "\U0010ffff")]

    def symbols(self, state: str) -> str:
        """See `Automaton`."""
        return "".join(dict.fromkeys(text[len(state)] for text in self._with(state) if len(text) > len(state)))

    def leaving(self, state: str) -> None:
        """See `Automaton`."""
        return None

    def step(self, state: str, symbol: str) -> str | None:
        """See `Automaton`."""
        read = state + symbol
        place = bisect_left(self._texts, read)
        return read if place < len(self._texts) and self._texts[place].startswith(read) else None

    def accepts(self, state: str) -> bool:
        """See `Automaton`."""
        return state in self._whole

    def rest(self, state: str) -> str:
        """See `Automaton`."""
        return min(self._with(state), key=len)[len(state) :]
