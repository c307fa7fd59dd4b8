"""The probabilities of tokens as OpenAI's chat API writes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sat_models.generation.scores import TokenScore
from sat_models.processing.tokens import Tokenizer

LEAST = -9999.0
"""What OpenAI writes for a token that is as good as impossible; JSON has no minus infinity."""


def logprobs_body(scores: Iterable[TokenScore], tokenizer: Tokenizer, *, first: bool) -> dict[str, Any]:
    """The `logprobs` of a choice, or of a chunk of one.

    Args:
        scores: of its tokens.
        first: they begin the answer, where a tokenizer's own space in front is no part of the text.
    """
    entries = []
    for number, score in enumerate(scores):
        begins = first and number == 0
        top = [_entry(tokenizer, *alternative, begins=begins) for alternative in score.top]
        entries.append({**_entry(tokenizer, score.token_id, score.logprob, begins=begins), "top_logprobs": top})
    return {"content": entries, "refusal": None}


def _entry(tokenizer: Tokenizer, token: int, logprob: float, *, begins: bool) -> dict[str, Any]:
    """One token: its text, in which bytes that are no whole character stand as `\\xe5`, and its bytes. A special token
    has its name and no bytes."""
    data, _ = tokenizer.token_bytes(token)
    logprob = max(logprob, LEAST)
    if not data:
        return {"token": tokenizer.name_of(token), "logprob": logprob, "bytes": None}
    if begins and tokenizer.adds_space:
        data = data.removeprefix(b" ")
    return {"token": data.decode("utf-8", "backslashreplace"), "logprob": logprob, "bytes": list(data)}
