"""Prompts as parts -> pieces of ids and images, each text encoded once."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sat_models.config import ImagePlan
from sat_models.processing.layout import Piece
from sat_models.processing.prompts import Answer, Apart, Mark, Part, Special, Words
from sat_models.processing.tokens import Tokenizer


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the layout takes it.

    Attributes:
        pieces: ids of text and images, in order.
        answers: where each earlier answer is: number of the piece, first and one past the last token in it.
    """

    pieces: list[Piece]
    answers: list[tuple[int, int, int]]

    def trained(self, untrained: Collection[int]) -> list[tuple[int, int, int]]:
        """`answers` without those of these turns."""
        return [place for number, place in enumerate(self.answers) if number not in untrained]


def encode_prompt(
    parts: Sequence[Part], images: Sequence[ImagePlan], tokenizer: Tokenizer, *, find_answers: bool = False
) -> EncodedPrompt:
    """Ids of a prompt. Text is encoded in stretches as long as they come, as the models were trained.

    Args:
        parts: the prompt in order.
        images: one for each `Mark.IMAGE`.
        find_answers: say where earlier answers are, which training asks for.

    Raises:
        ConfigError: a special token that the tokenizer does not have.
    """
    pieces: list[Piece] = [[]]
    answers: list[tuple[int, int, int]] = []
    left = iter(images)
    for is_text, group in itertools.groupby(parts, _joins_text):
        if is_text:
            ids, spans = _encode_text(list(group), tokenizer, find_answers=find_answers)
            at = len(pieces[-1])
            answers += [(len(pieces) - 1, at + start, at + end) for start, end in spans]
            pieces[-1].extend(ids)
            continue
        for part in group:
            if part is Mark.IMAGE:
                pieces += [next(left), []]
                continue
            ids = _alone(part, tokenizer)
            if find_answers and isinstance(part, Answer):
                answers.append((len(pieces) - 1, len(pieces[-1]), len(pieces[-1]) + len(ids)))
            pieces[-1].extend(ids)
    return EncodedPrompt(pieces, answers)


def answer_ids(answer: Answer, tokenizer: Tokenizer) -> list[int]:
    """Ids of an answer that stands alone, its lead in front."""
    return [*(tokenizer.encode(answer.lead) if answer.lead else ()), *tokenizer.encode(answer.text)]


def encode_words(words: Words, tokenizer: Tokenizer) -> list[int]:
    """Ids of the words of a template. Raises as `encode_prompt`."""
    parts: Sequence[Part] = (words,) if isinstance(words, str) else words
    return [token for piece in encode_prompt(parts, (), tokenizer).pieces for token in piece]


def _joins_text(part: Part) -> bool:
    """True if a part is encoded together with the text beside it."""
    return isinstance(part, str) or (isinstance(part, Answer) and not part.lead)


def _alone(part: Special | Apart | Answer | Mark, tokenizer: Tokenizer) -> list[int]:
    if isinstance(part, Answer):
        return answer_ids(part, tokenizer)
    if isinstance(part, Apart):
        return tokenizer.encode(part.text)
    if isinstance(part, Special):
        return [tokenizer.special_id(part.name)]
    token = tokenizer.eos_id if part is Mark.END else tokenizer.bos_id
    return [] if token is None else [token]


def _encode_text(
    parts: Sequence[str | Answer], tokenizer: Tokenizer, *, find_answers: bool
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of a stretch of text, and the index range in them of each answer."""
    texts = [part.text if isinstance(part, Answer) else part for part in parts]
    whole = "".join(texts)
    ids = tokenizer.encode(whole)
    if not find_answers:
        return ids, []
    ends = list(itertools.accumulate(map(len, texts)))
    chosen = [(end - len(text), end) for part, text, end in zip(parts, texts, ends, strict=True) if part is not text]
    counts = _tokens_before([cut for span in chosen for cut in span], whole, ids, tokenizer)
    return ids, list(zip(counts[::2], counts[1::2], strict=True))


def _tokens_before(cuts: Sequence[int], text: str, ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """How many of `ids` lie before each character position of `text`, positions ascending.

    A token over a cut (the space before an answer's first word) belongs to what follows it. Tokens are measured by
    their bytes; where these do not spell the text (a tokenizer that normalises it), the text up to the cut is encoded
    once more, and tokens that stay the same lie before it.
    """
    spelled = [tokenizer.token_bytes(token)[0] for token in ids]
    together, data = b"".join(spelled), text.encode()
    more = len(together) - len(data)  # the space that some tokenizers put in front
    if more not in (0, 1) or together[more:] != data:
        return [_shared(tokenizer.encode(text[:cut]), ids) for cut in cuts]
    ends, counts, at, size = list(itertools.accumulate(map(len, spelled))), [], 0, more
    for cut in cuts:
        at, size = cut, size + len(text[at:cut].encode())
        counts.append(bisect.bisect_right(ends, size) if cut else 0)
    return counts


def _shared(left: list[int], right: list[int]) -> int:
    """Length of the common beginning."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count
