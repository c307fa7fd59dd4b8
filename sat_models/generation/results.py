"""What generation gives: tokens as they come, and finished answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from sat_models.processing.tokens import StreamDecoder, Tokenizer

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class GenerationResult:
    """A finished answer.

    Attributes:
        text: the answer.
        token_ids: what was generated, the end token excluded.
        finish_reason: "stop": the model ended; "length": `max_new_tokens` or `max_length` cut it off.
        prompt_tokens: tokens of the prompt, image included.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int = 0


class TokenStream(Iterator[int]):
    """Token ids of one answer as they are made. Iterate it to the end, or `close` it.

    Attributes:
        token_ids: ids given out so far, the end token excluded.
        finish_reason: None until the end, and after `close`.
        prompt_tokens: tokens of the prompt, image included.
        cached_tokens: how many of them were kept from an earlier prompt and not computed again; known at the first id.
    """

    def __init__(self, prompt_tokens: int) -> None:
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self._source: Iterator[int] = iter(())

    def __next__(self) -> int:
        return next(self._source)

    def close(self) -> None:
        """Stop generating, on all processes, and take the cache off the model."""
        getattr(self._source, "close", lambda: None)()

    def feed_from(self, source: Iterator[int]) -> None:
        """Take the ids from `source`, a generator."""
        self._source = source

    def wrap(self, around: Callable[[Iterator[int]], Iterator[int]]) -> None:
        """Put a generator around the source: code before the first token, after the last one, or on failure."""
        self._source = around(self._source)


def text_pieces(tokens: Iterable[int], decoder: StreamDecoder) -> Iterator[str]:
    """Token ids -> pieces of text as soon as they are certain; never half a character. Joined they are the answer."""
    for token in tokens:
        if piece := decoder.push(token):
            yield piece
    if rest := decoder.flush():
        yield rest


def complete(stream: TokenStream, tokenizer: Tokenizer) -> GenerationResult:
    """Run a stream to its end."""
    for _ in stream:
        pass
    return GenerationResult(
        text=tokenizer.decode(stream.token_ids),
        token_ids=stream.token_ids,
        finish_reason=stream.finish_reason or "stop",
        prompt_tokens=stream.prompt_tokens,
    )
