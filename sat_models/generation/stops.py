"""Stop strings: in text that comes in pieces, and in the tokens of an answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sat_models.generation.results import GenerationResult, TokenStream
from sat_models.processing.tokens import Tokenizer


class StopText:
    """Lets text through up to the first stop string.

    What may be the beginning of one is held back until it is certain, so no part of a stop string gets out.

    Attributes:
        reached: a stop string has come.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.reached = False

    def push(self, piece: str) -> str:
        """The text that is certain now."""
        if self.reached:
            return ""
        text = self._held + piece
        found = [place for place in (text.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.reached, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    @property
    def undecided(self) -> bool:
        """Whether text is held back."""
        return bool(self._held)

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)


def end_at(stream: TokenStream, stops: Sequence[str], tokenizer: Tokenizer) -> TokenStream:
    """Let `stream` end before the first of `stops` in its text, for prompt styles whose answers have such ends.

    Call it on every process that shares the model; the one that chooses tokens tells the others. Tokens whose text may
    be the beginning of a stop are given out late.
    """

    def until_stop(source: Iterator[int]) -> Iterator[int]:
        stop, decoder, waiting = StopText(stops), tokenizer.stream(), []
        try:
            for token in source:
                stop.push(decoder.push(token))
                waiting.append(token)
                if stop.reached:
                    del stream.token_ids[-len(waiting) :]
                    stream.finish_reason = "stop"
                    return
                if not stop.undecided:
                    yield from waiting
                    waiting.clear()
            yield from waiting
        finally:
            getattr(source, "close", lambda: None)()

    if stops:
        stream.wrap(until_stop)
    return stream


def cut_at(result: GenerationResult, stops: Sequence[str], tokenizer: Tokenizer) -> GenerationResult:
    """A finished answer up to the first of `stops`, as `end_at` would have ended it."""
    stream = TokenStream(result.prompt_tokens)
    stream.feed_from(iter(result.token_ids))
    kept = list(end_at(stream, stops, tokenizer))
    if stream.finish_reason is None:
        return result
    return replace(result, text=tokenizer.decode(kept), token_ids=kept, finish_reason="stop")
