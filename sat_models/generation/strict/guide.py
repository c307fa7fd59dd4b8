"""What keeps one answer within its constraint: which tokens may come, which must, and when it is whole.

All processes that share a model walk the same grammar with the same tokens, so they agree; only the first one, which
chooses the tokens, asks which may come.

Legend: V tokens of the vocabulary.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sat_models.errors import InputError, ZooError
from sat_models.generation.strict.automata import OneOf
from sat_models.generation.strict.boxes import Boxes
from sat_models.generation.strict.constraint import Constraint
from sat_models.generation.strict.library import LibraryGrammar, LibraryTokenizer, grammar_text
from sat_models.generation.strict.spelling import Spelling, symbols_of
from sat_models.generation.strict.walk import TokenMap, Walk
from sat_models.processing.tokens import Tokenizer

_MOST_GRAMMARS = 64
"""Compiled grammars that are remembered for a tokenizer."""
_TAGS_IN_TEXT = ("<ref>", "</ref>")
"""Special tokens that text between boxes may hold, where a tokenizer has them."""


class GrammarState(Protocol):
    """Where one answer stands in a grammar.

    Attributes:
        accepting: it is whole as it stands.
        complete: it is whole, and nothing may follow.
        needs: tokens that suffice to make it whole, where this is known; else 0.
    """

    @property
    def accepting(self) -> bool: ...

    @property
    def complete(self) -> bool: ...

    @property
    def needs(self) -> int: ...

    def allowed(self, left: int) -> np.ndarray:
        """Bool [V]: the tokens that may follow, where `left` more may be written, that one included."""
        ...

    def take(self, token: int) -> None:
        """One more token, which was allowed."""
        ...

    def must(self) -> tuple[int, ...]:
        """The tokens that follow whatever is chosen, as far as they are known."""
        ...

    def ends_after(self, tokens: Sequence[int]) -> bool:
        """True if it would be complete after tokens of `must`, all of them."""
        ...


class Guide:
    """Keeps one answer within its constraint.

    Args:
        constraint: what was asked for.
        state: at the beginning of its grammar.
        end_ids: tokens that end an answer.
        budget: most tokens of the answer.

    Attributes:
        must: tokens that follow whatever is chosen, in order.
        failure: why no token may follow; None as long as one may.
    """

    def __init__(self, constraint: Constraint, state: GrammarState, end_ids: Collection[int], budget: int) -> None:
        self._constraint, self._state, self._left = constraint, state, budget
        self._ends = np.array(sorted(end_ids), dtype=np.int64)
        self.must: list[int] = list(state.must())
        self.failure: ZooError | None = None

    @property
    def complete(self) -> bool:
        """The answer is whole, and nothing may follow."""
        return self._state.complete

    def take(self, token: int) -> None:
        """One more token of the answer."""
        self._state.take(token)
        self._left -= 1
        if self.must:
            del self.must[0]
        elif not self._state.complete:
            self.must = list(self._state.must())

    def ahead(self) -> Sequence[int]:
        """Tokens of `must` that can be taken without ending the answer."""
        tokens = self.must[: self._left - 1]
        if tokens and len(tokens) == len(self.must) and self._state.ends_after(tokens):
            return tokens[:-1]
        return tokens

    def cut(self, logits: Tensor) -> Tensor:
        """Logits [1, V] -> the same, -inf for what may not follow; on their device. `failure` says why nothing may."""
        forbidden = np.ones(logits.shape[-1], dtype=bool)
        try:
            allowed = self._state.allowed(self._left)[: len(forbidden)]
        except ZooError as error:
            self.failure = error
            return torch.full_like(logits, -torch.inf)
        np.logical_not(allowed, out=forbidden[: len(allowed)])
        forbidden[self._ends[self._ends < len(forbidden)]] = not self._state.accepting
        if forbidden.all():
            self.failure = ZooError(f"No token of this model goes on with an answer that fits {self._constraint}.")
        return logits.masked_fill(torch.from_numpy(forbidden).to(logits.device), -torch.inf)

    def incomplete(self) -> str | None:
        """What is to be said of an answer that a limit cuts off here; None if it is whole."""
        if self._state.accepting:
            return None
        return (
            f"The answer was cut off by the limit of its tokens and is not whole: it does not fit {self._constraint} "
            "yet. Allow more tokens (max_new_tokens, max_tokens), or ask for something shorter."
        )


def ahead_of(guides: Iterable[Guide | None], worth: range) -> Tensor | None:
    """Tokens [R, S] that follow in each of R answers whatever is chosen, as many in each.

    Args:
        guides: of the answers.
        worth: how many tokens are fed together, the newest one included.

    Returns:
        None where there are fewer.
    """
    known: list[Sequence[int]] = []
    for guide in guides:
        known.append(() if guide is None else guide.ahead())
        if 1 + len(known[-1]) < worth.start:
            return None
    count = min(min(map(len, known)), worth.stop - 2)
    return torch.tensor([tokens[:count] for tokens in known]) if 1 + count in worth else None


class Grammars:
    """The grammars that were asked for of one tokenizer, compiled once each.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._spelling, self._end = Spelling(tokenizer), tokenizer.eos_id
        self._library: LibraryTokenizer | None = None
        self._kept: dict[tuple[Constraint, str], TokenMap | LibraryGrammar] = {}
        self._lock = threading.Lock()

    def compiled(self, constraint: Constraint, lead: str) -> TokenMap | LibraryGrammar:
        """A constraint as a grammar.

        Args:
            lead: what an answer begins with and its text leaves out.

        Raises:
            InputError: it cannot be compiled.
            MissingPackageError: the package that it takes is not installed.
        """
        with self._lock:
            if (found := self._kept.pop((constraint, lead), None)) is None:
                found = self._compile(constraint, self._spelling.lead + lead)
            while len(self._kept) >= _MOST_GRAMMARS:
                del self._kept[next(iter(self._kept))]
            self._kept[constraint, lead] = found  # the newest is the last to go
            return found

    def _compile(self, constraint: Constraint, lead: str) -> TokenMap | LibraryGrammar:
        spelling = self._spelling
        if constraint.kind in ("json", "regex"):
            if self._library is None:
                self._library = LibraryTokenizer(spelling, self._end)
            return LibraryGrammar(self._library, constraint.kind, constraint.source, lead)
        if constraint.kind == "choice":
            automaton = OneOf([symbols_of(lead + text) for text in constraint.source])
        else:
            if constraint.form is None:
                raise InputError("Boxes were asked for without their form; ask through Request.of or a loaded model.")
            in_text = constraint.kind == "boxes in text"
            free = "".join(filter(None, map(spelling.special, _TAGS_IN_TEXT)))
            automaton = Boxes(
                constraint.form, lead=symbols_of(lead), in_text=in_text, special=spelling.special, free=free
            )
        return TokenMap(automaton, spelling)


_GRAMMARS: weakref.WeakKeyDictionary[Tokenizer, Grammars] = weakref.WeakKeyDictionary()
_MAKING = threading.Lock()


def _grammars(tokenizer: Tokenizer) -> Grammars:
    with _MAKING:
        if (found := _GRAMMARS.get(tokenizer)) is None:
            found = _GRAMMARS[tokenizer] = Grammars(tokenizer)
        return found


def check_constraint(constraint: Constraint, tokenizer: Tokenizer, lead: str = "") -> None:
    """Compile a constraint for a tokenizer, or find it compiled. Raises as `Grammars.compiled`."""
    _grammars(tokenizer).compiled(constraint, lead)


def check_source(constraint: Constraint) -> None:
    """What can be said before there is a tokenizer: that a schema or regex compiles. Raises as `grammar_text`."""
    if constraint.kind in ("json", "regex"):
        grammar_text(constraint.kind, constraint.source)


def begin(constraint: Constraint, tokenizer: Tokenizer, lead: str, end_ids: Collection[int], budget: int) -> Guide:
    """The guide of one answer.

    Args:
        constraint: what was asked for; boxes with their form.
        lead: what an answer begins with and its text leaves out.
        end_ids: tokens that end an answer.
        budget: most tokens of the answer.

    Raises:
        InputError: it cannot be compiled, or no such answer has so few tokens.
        MissingPackageError: the package that it takes is not installed.
    """
    compiled = _grammars(tokenizer).compiled(constraint, lead)
    state: GrammarState = compiled.begin() if isinstance(compiled, LibraryGrammar) else Walk(compiled)
    if state.needs > budget:
        raise InputError(
            f"The answer may have {budget} tokens, but the shortest that fits {constraint} takes {state.needs}. "
            "Allow more (max_new_tokens, max_tokens)."
        )
    return Guide(constraint, state, end_ids, budget)
