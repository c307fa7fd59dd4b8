"""Leads and stop strings: where the text of an answer begins, what of it is certain, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence

from sat_models.processing.tokens import TextStream


class NoText:
    """Stands for a decoder where nobody reads text."""

    def push(self, token_id: int) -> str:
        """See `TextStream`."""
        return ""

    def flush(self) -> str:
        """See `TextStream`."""
        return ""


class StrippedText:
    """A decoder whose text has no white space at its ends: it is held back until more text shows that it stands inside.

    Args:
        decoder: a fresh one.
    """

    def __init__(self, decoder: TextStream) -> None:
        self._decoder = decoder
        self._begun, self._space = False, ""

    def push(self, token_id: int) -> str:
        """See `TextStream`."""
        return self._inside(self._decoder.push(token_id))

    def flush(self) -> str:
        """See `TextStream`."""
        return self._inside(self._decoder.flush())

    def _inside(self, piece: str) -> str:
        text = self._space + piece if self._begun else piece.lstrip()
        kept = text.rstrip()
        self._begun, self._space = self._begun or bool(kept), text[len(kept) :]
        return kept


class Behind:
    """Text behind a lead, where it begins with one.

    Args:
        lead: what is left out.
        decoder: of all text.
    """

    def __init__(self, lead: str, decoder: TextStream) -> None:
        self._lead, self._decoder, self._held = lead, decoder, ""

    def push(self, token_id: int) -> str:
        """See `TextStream`."""
        return self._behind(self._decoder.push(token_id))

    def flush(self) -> str:
        """See `TextStream`."""
        return self._behind(self._decoder.flush(), last=True)

    def _behind(self, piece: str, *, last: bool = False) -> str:
        """The text that is certain not to be the lead."""
        text = self._held + piece
        if not last and len(text) < len(self._lead) and self._lead.startswith(text):
            self._held = text
            return ""
        lead, self._held, self._lead = self._lead, "", ""
        return text.removeprefix(lead)


class AnswerText:
    """Tokens as they are sampled -> ids and text of the answer, up to the first stop string.

    What may be the beginning of a stop string is held back, by whole tokens, until it is certain; so no part of one
    gets out. The text ends where the stop string begins. The token in which it begins is one of the answer's if more
    than white space stands in front of the stop string in it.

    Attributes:
        token_ids: the answer's, as far as they are certain; always the first ones of what was pushed.
        ends: of each of these tokens, how many characters of the text it and those before it made. A token that holds
            a part of a character made none; the last part made it.
        stopped: a stop string has come.
    """

    def __init__(self, decoder: TextStream, stops: Sequence[str] = ()) -> None:
        self._decoder, self._stops = decoder, tuple(stop for stop in stops if stop)
        self.token_ids: list[int] = []
        self.ends: list[int] = []
        self.stopped = False
        self._length = 0
        self._pieces: list[str] = []
        self._taken = 0  # pieces that `take` gave
        self._silent: list[int] = []  # tokens without text so far: a byte of a character, say
        self._held: list[tuple[list[int], str]] = []  # tokens with the text that came with the last of them

    def push(self, token: int) -> None:
        """One more token."""
        piece = self._decoder.push(token)
        if not self._stops:
            self._give((token,), piece)
            return
        self._silent.append(token)
        if piece:
            self._hold(piece)

    def finish(self) -> None:
        """No token follows."""
        rest = self._decoder.flush()
        if self._silent or rest:
            self._hold(rest)
        for tokens, piece in self._held:
            self._give(tokens, piece)
        self._held = []

    def take(self) -> str:
        """The text that became certain since the last call."""
        pieces, self._taken = self._pieces[self._taken :], len(self._pieces)
        return "".join(pieces)

    @property
    def text(self) -> str:
        """All text that is certain."""
        return "".join(self._pieces)

    def _give(self, tokens: Sequence[int], piece: str) -> None:
        self.token_ids.extend(tokens)
        self.ends.extend([self._length] * len(tokens))
        if piece:
            self._pieces.append(piece)
            self._length += len(piece)
            self.ends[-1:] = [self._length] if self.ends else []

    def _hold(self, piece: str) -> None:
        """Take in the silent tokens with their text, and let go of what cannot be the beginning of a stop string."""
        self._held.append((self._silent, piece))
        self._silent = []
        text = "".join(piece for _, piece in self._held)
        found = [place for place in map(text.find, self._stops) if place >= 0]
        if found:
            self._cut(min(found))
            return
        undecided = max((_overlap(text, stop) for stop in self._stops), default=0)
        while self._held and len(text) - len(self._held[0][1]) >= undecided:
            tokens, piece = self._held.pop(0)
            text = text[len(piece) :]
            self._give(tokens, piece)

    def _cut(self, place: int) -> None:
        """End the answer at this place of the text that is held."""
        self.stopped = True
        for tokens, piece in self._held:
            if len(piece) > place:
                self._give(tokens if piece[:place].strip() else (), piece[:place])
                break
            self._give(tokens, piece)
            place -= len(piece)
        self._held = []


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
