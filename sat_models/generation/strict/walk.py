"""An automaton of letters walked in tokens: which may come, and which must.

Legend: V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from sat_models.errors import InputError
from sat_models.generation.strict.automata import Automaton
from sat_models.generation.strict.spelling import Spelling, special_id

_MOST_STATES = 4096
"""States whose tokens are remembered."""


class Next(NamedTuple):
    """The tokens that may follow in a state: ids, and how many tokens suffice behind each to make the answer whole."""

    ids: np.ndarray
    needs: np.ndarray


class TokenMap:
    """Which tokens lead where in an automaton; made once for all answers.

    Args:
        automaton: of symbols.
        spelling: what the tokens write.
    """

    def __init__(self, automaton: Automaton, spelling: Spelling) -> None:
        self.automaton, self.spelling = automaton, spelling
        self._next: dict[Hashable, Next] = {}
        self._must: dict[Hashable, tuple[int, ...]] = {}
        self._fewest = cache(self._count)

    def next(self, state: Hashable) -> Next:
        """The tokens that may follow."""
        if (found := self._next.get(state)) is None:
            if len(self._next) >= _MOST_STATES:
                self._next.clear()
            found = self._next[state] = self._find_next(state)
        return found

    def _find_next(self, state: Hashable) -> Next:
        found: dict[Hashable, list[int]] = {}
        for symbol in self.automaton.symbols(state):
            token = special_id(symbol)
            behind = None if token is None else self.automaton.step(state, symbol)
            if behind is not None:
                found.setdefault(behind, []).append(token)
        texts, ids = self.spelling.texts_in_order, self.spelling.ids_in_order
        leaving = self.automaton.leaving(state)
        if leaving is None:
            self._descend(state, "", 0, len(texts), found)
        else:
            for text, token in zip(texts, ids, strict=True):
                plain = not any(symbol in text for symbol in leaving)
                behind = state if plain else self.walk(state, text)
                if behind is not None:
                    found.setdefault(behind, []).append(token)
        needs = [needs for behind, tokens in found.items() for needs in [self.needs(behind)] * len(tokens)]
        tokens = [token for each in found.values() for token in each]
        return Next(np.array(tokens, dtype=np.int64), np.array(needs, dtype=np.int64))

    def _descend(self, state: Hashable, read: str, low: int, high: int, found: dict[Hashable, list[int]]) -> None:
        """Tokens whose texts stand from `low` to `high` and begin with `read`, which led to `state`."""
        texts, ids = self.spelling.texts_in_order, self.spelling.ids_in_order
        while low < high and texts[low] == read:
            found.setdefault(state, []).append(ids[low])
            low += 1
        if low == high:
            return
        for symbol in self.automaton.symbols(state):
            first, end = self.spelling.beginning_with(read + symbol, low, high)
            behind = self.automaton.step(state, symbol) if first < end else None
            if behind is not None:
                self._descend(behind, read + symbol, first, end, found)

    def walk(self, state: Hashable, symbols: Iterable[str]) -> Hashable | None:
        """The state behind some symbols; None where they may not follow."""
        for symbol in symbols:
            if (behind := self.automaton.step(state, symbol)) is None:
                return None
            state = behind
        return state

    def symbols_of(self, token: int) -> str:
        """What a token is to the automaton: its text, or its own symbol if it writes none."""
        return self.spelling.texts[token].decode("latin-1") or chr(256 + token)

    def must(self, state: Hashable) -> tuple[int, ...]:
        """The tokens that follow whatever is chosen: where only one text may, and no token writes on behind it."""
        if (found := self._must.get(state)) is None:
            if len(self._must) >= _MOST_STATES:
                self._must.clear()
            found = self._must[state] = tuple(self._find_must(state))
        return found

    def _find_must(self, state: Hashable) -> list[int]:
        tokens: list[int] = []
        while text := self._only_text(state):
            spelled = {self.symbols_of(token): token for token in self.next(state).ids.tolist()}
            if not all(map(text.startswith, spelled)):
                break
            longest = max(spelled, key=len)
            tokens.append(spelled[longest])
            state = self.walk(state, longest)
        return tokens

    def _only_text(self, state: Hashable) -> str:
        """The symbols that must follow."""
        text = ""
        while not self.automaton.accepts(state):
            steps = [(symbol, self.automaton.step(state, symbol)) for symbol in self.automaton.symbols(state)]
            steps = [(symbol, behind) for symbol, behind in steps if behind is not None]
            if len(steps) != 1:
                break
            text, state = text + steps[0][0], steps[0][1]
        return text

    def needs(self, state: Hashable) -> int:
        """Tokens that suffice to make what was read whole.

        Raises:
            InputError: the tokenizer cannot write it.
        """
        return self._fewest(self.automaton.rest(state))

    def _count(self, text: str) -> int:
        """The fewest tokens that write some symbols."""
        fewest = [0] * (len(text) + 1)
        for start in range(len(text) - 1, -1, -1):
            ends = (start + size for size in self.spelling.sizes_at(text, start))
            least = min((fewest[end] for end in ends), default=None)
            if least is None:
                raise InputError(
                    f"This model's tokenizer has no token for {text[start]!r}, so it cannot write {text!r}."
                )
            fewest[start] = 1 + least
        return fewest[0]


class Walk:
    """Where one answer stands in an automaton; a `GrammarState`."""

    def __init__(self, tokens: TokenMap) -> None:
        self._tokens, self._automaton = tokens, tokens.automaton
        self._state: Any = tokens.automaton.start

    @property
    def accepting(self) -> bool:
        """See `GrammarState`."""
        return self._automaton.accepts(self._state)

    @property
    def complete(self) -> bool:
        """See `GrammarState`."""
        state = self._state
        return self.accepting and self._automaton.leaving(state) is None and not self._automaton.symbols(state)

    @property
    def needs(self) -> int:
        """See `GrammarState`."""
        return self._tokens.needs(self._state)

    def allowed(self, left: int) -> np.ndarray:
        """See `GrammarState`."""
        ids, needs = self._tokens.next(self._state)
        mask = np.zeros(self._tokens.spelling.size, dtype=bool)
        mask[ids[needs < left]] = True
        return mask

    def take(self, token: int) -> None:
        """See `GrammarState`."""
        self._state = self._tokens.walk(self._state, self._tokens.symbols_of(token))

    def must(self) -> tuple[int, ...]:
        """See `GrammarState`."""
        return self._tokens.must(self._state)

    def ends_after(self, tokens: Sequence[int]) -> bool:
        """See `GrammarState`."""
        ahead = Walk(self._tokens)
        ahead._state = self._tokens.walk(self._state, "".join(map(self._tokens.symbols_of, tokens)))
        return ahead.complete
