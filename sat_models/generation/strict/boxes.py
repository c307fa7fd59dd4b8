"""The grammar of boxes, in the form of each family (`processing.box_forms`).

A box has four numbers written as its family writes them, its second corner right of and below its first: none is cut
off, out of range or without size. An answer is boxes alone, or text in which every box is whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from sat_models.processing.box_forms import BoxForm


class Text(NamedTuple):
    """Between boxes, where the answer may end."""


class Number(NamedTuple):
    """In a number.

    Attributes:
        place: which of the four.
        read: what was read of it.
        values: of the numbers before it, by their place in `BoxForm.numbers`.
        tagged: the form's tags stand around this group.
    """

    place: int
    read: str
    values: tuple[int, ...]
    tagged: bool


class Marks(NamedTuple):
    """Between numbers.

    Attributes:
        ways: what may follow, symbol by symbol, and the state behind it.
        whole: the answer may end here, too.
    """

    ways: tuple[tuple[str, State], ...]
    whole: bool = False


State = Text | Number | Marks
END = Marks((), whole=True)
"""Nothing follows."""


class Boxes:
    """Boxes of one form; see `Automaton`.

    Args:
        form: of the family.
        lead: symbols that stand in front of everything.
        in_text: text may stand around the boxes; they are none or many.
        special: gives the symbol of a special token, None where there is none of that name.
        free: special symbols that text may hold.
    """

    def __init__(
        self,
        form: BoxForm,
        *,
        lead: str = "",
        in_text: bool = False,
        special: Callable[[str], str | None] = lambda name: None,
        free: str = "",
    ) -> None:
        self._open, self._comma, self._between, self._close = form.marks
        before, behind = form.tags or ("", "")
        self._before, self._behind = special(before) or before, special(behind) or behind
        self._in_text, self._free = in_text, free
        self._tag = self._before if len(self._before) == 1 else ""  # a token of its own; else letters of the text
        self._numbers = form.numbers
        self._values = {text: value for value, text in enumerate(self._numbers)}
        self._completed = cache(self._shortest)
        beginning: State = Text() if in_text else self._opened(self._before, tagged=bool(self._before))
        self.start: State = Marks(((lead, beginning),)) if lead else beginning

    def _opened(self, before: str, *, tagged: bool) -> Marks:
        return Marks(((before + self._open, Number(0, "", (), tagged)),))

    def symbols(self, state: State) -> str:
        """See `Automaton`."""
        match state:
            case Text():
                return self._open[0] + self._tag + self._free
            case Number():
                return "0123456789." + self._comma[0] + self._between[0] + self._close[0]
            case Marks():
                return "".join(dict.fromkeys(marks[0] for marks, _ in state.ways))

    def leaving(self, state: State) -> str | None:
        """See `Automaton`."""
        return self._open[0] if isinstance(state, Text) else None

    def step(self, state: State, symbol: str) -> State | None:
        """See `Automaton`."""
        match state:
            case Text():
                if symbol == self._open[0]:
                    return _behind(self._opened("", tagged=False).ways, symbol)
                if self._tag and symbol == self._tag:
                    return _behind(self._opened(self._tag, tagged=True).ways, symbol)
                return state if ord(symbol) < 256 or symbol in self._free else None
            case Number():
                if self._fitting(state, state.read + symbol) is not None:
                    return state._replace(read=state.read + symbol)
                value = self._values.get(state.read)
                whole = value is not None and self._fitting(state, state.read) == state.read
                return _behind(self._following(state, value), symbol) if whole else None
            case Marks():
                return _behind(state.ways, symbol)

    def accepts(self, state: State) -> bool:
        """See `Automaton`."""
        return isinstance(state, Text) or (isinstance(state, Marks) and state.whole)

    def rest(self, state: State) -> str:
        """See `Automaton`."""
        if self.accepts(state):
            return ""
        if isinstance(state, Number):
            text = self._fitting(state, state.read)
            following = Marks(self._following(state, self._values[text]))
            return text[len(state.read) :] + self.rest(following)
        marks, behind = state.ways[-1]  # the last one ends the group
        return marks + self.rest(behind)

    def _fitting(self, state: Number, read: str) -> str | None:
        """The shortest number that begins so and may stand there; None where there is none."""
        above = state.values[state.place - 2] if state.place >= 2 else -1
        room = 1 if state.place < 2 else 0  # a first corner leaves room for the second
        return self._completed(read, above, len(self._numbers) - room)

    def _shortest(self, read: str, above: int, below: int) -> str | None:
        fitting = [text for text in self._numbers[above + 1 : below] if text.startswith(read)]
        return min(fitting, key=len, default=None)

    def _following(self, state: Number, value: int) -> tuple[tuple[str, State], ...]:
        """What may stand behind a number."""
        if state.place < 3:
            values = (*state.values, value)
            return ((self._comma, Number(state.place + 1, "", values, state.tagged)),)
        end: State = Text() if self._in_text else END
        closing = self._close + (self._behind if state.tagged else "")
        return ((self._between, Number(0, "", (), state.tagged)), (closing, end))


def _behind(ways: tuple[tuple[str, State], ...], symbol: str) -> State | None:
    """The state behind one more symbol of some marks; None where none goes on with it."""
    going = [(marks[1:], state) for marks, state in ways if marks[0] == symbol]
    ended = [state for marks, state in going if not marks]
    left = tuple((marks, state) for marks, state in going if marks)
    if not ended:
        return Marks(left) if left else None
    return Marks(left, whole=True) if ended[0] == END and left else ended[0]
