"""An answer from what is asked to what callers read: `Request` -> `AnswerRow` while it is made -> `GenerationResult`.

A row ends itself, by its own tokens alone: at an end token, before a stop string, or at its limit. So it ends in the
same place for every caller, and on every process that shares a model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.stops import AnswerText, Behind, NoText, StrippedText
from sat_models.processing.inputs import VLMInputs
from sat_models.processing.intake import Images, MaxTiles
from sat_models.processing.processor import Processor
from sat_models.processing.prompts import Turn
from sat_models.processing.tokens import TextStream

if TYPE_CHECKING:
    from sat_models.generation.prefixes import Prefix

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """One request to a model.

    Attributes:
        inputs: one prompt (batch of one), on any device.
        options: how tokens are chosen, and how many at most.
        stops: texts that end the answer besides the model's end tokens; no part of them belongs to it.
        lead: what does not belong to its text, where it begins so; its tokens are the answer's all the same.
        logprobs: note each token's log probability.
        stripped: white space at the ends of the text is no part of it.
        counts_prompt: a repetition penalty counts the prompt's tokens, too.
    """

    inputs: VLMInputs
    options: SamplingOptions = field(default_factory=SamplingOptions)
    stops: tuple[str, ...] = ()
    lead: str = ""
    logprobs: bool = False
    stripped: bool = False
    counts_prompt: bool = False

    @classmethod
    def of(
        cls,
        processor: Processor,
        image: Images,
        query: str,
        *,
        history: Sequence[Turn] = (),
        version: str | None = None,
        options: SamplingOptions | None = None,
        stops: Sequence[str] = (),
        logprobs: bool = False,
        allow_empty_query: bool = False,
        system: str | None = None,
        max_tiles: MaxTiles = None,
    ) -> Request:
        """A question in words: its prompt, and how its prompt style ends and strips answers.

        Args:
            image, query, history, version, allow_empty_query, system, max_tiles: see `Processor.__call__`, which says
                what it raises.
            stops: besides the prompt style's.
        """
        how = {"allow_empty_query": allow_empty_query, "system": system, "max_tiles": max_tiles}
        inputs = processor(image, query, history=history, version=version, **how)
        ends = (*stops, *processor.stops(version))
        style = processor.style(version)
        counts_prompt = processor.form.penalises_text_prompts and inputs.vision_image is None
        chosen = options or SamplingOptions()
        return cls(inputs, chosen, ends, style.lead, logprobs, style.stripped, counts_prompt)


@dataclass(frozen=True)
class GenerationResult:
    """A finished answer.

    Attributes:
        text: the answer; empty from an engine without a tokenizer.
        token_ids: what was generated, end token and stop string excluded.
        finish_reason: "stop": the model ended, or a stop string came; "length": a limit cut it off.
        prompt_tokens: tokens of the prompt, image included.
        cached_tokens: how many of them were kept from an earlier prompt and not computed again.
        logprobs: of each token the natural logarithm of its probability in the model's own distribution (temperature
            1, nothing cut off); None unless asked for.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int = 0
    cached_tokens: int = field(default=0, compare=False)
    logprobs: list[float] | None = field(default=None, compare=False)


class AnswerRow:
    """One answer while it is made.

    Args:
        request: what was asked.
        budget: most tokens that may be sampled.
        end_ids: tokens that end an answer.
        decoder: a fresh one for its text; None: nobody reads text.

    Attributes:
        sampled: all tokens that were chosen, those of a stop string included; what the model was fed with.
        prefix: what of its prompt is kept, once that was looked up; None before, and where nothing is ever kept.
        cached_tokens: how many tokens of the prompt were not computed; known at the first token.
        finish_reason: None while it runs, and if it was ended from outside or failed.
        error: why it failed, else None.
    """

    def __init__(
        self, request: Request, *, budget: int, end_ids: Collection[int], decoder: TextStream | None = None
    ) -> None:
        self.request, self.budget = request, budget
        self.sampled: list[int] = []
        self.prefix: Prefix | None = None
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self._end_ids = end_ids
        decoder = decoder or NoText()
        decoder = Behind(request.lead, decoder) if request.lead else decoder
        self._text = AnswerText(StrippedText(decoder) if request.stripped else decoder, request.stops)
        self._logprobs: list[Tensor] = []

    @property
    def token_ids(self) -> list[int]:
        """Tokens of the answer, as far as they are certain."""
        return self._text.token_ids

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, image included."""
        return self.request.inputs.length

    @property
    def over(self) -> bool:
        """No token follows."""
        return self.finish_reason is not None or self.error is not None

    def take(self, token: int) -> None:
        """Note the token that the model gave, and end the answer if it ends here."""
        if token in self._end_ids:
            self._end("stop")
            return
        self.sampled.append(token)
        self._text.push(token)
        if self._text.stopped:
            self.finish_reason = "stop"
        elif len(self.sampled) == self.budget:
            self._end("length")

    def note_logprob(self, logprob: Tensor) -> None:
        """The log probability of the token that `take` is told next: a tensor without dimensions, on any device."""
        self._logprobs.append(logprob)

    def take_text(self) -> str:
        """The text that became certain since the last call; the pieces joined are the answer's text."""
        return self._text.take()

    def result(self) -> GenerationResult:
        """The answer.

        Raises:
            Exception: `error`, if it failed.
            RuntimeError: it is not over.
        """
        if self.error is not None:
            raise self.error
        if self.finish_reason is None:
            raise RuntimeError("this answer has not ended; read it to its end first")
        ids = list(self.token_ids)
        logprobs = None
        if self.request.logprobs:
            logprobs = torch.stack(self._logprobs[: len(ids)]).tolist() if ids else []
        return GenerationResult(
            self._text.text, ids, self.finish_reason, self.prompt_tokens, self.cached_tokens, logprobs
        )

    def _end(self, reason: FinishReason) -> None:
        self._text.finish()
        self.finish_reason = "stop" if self._text.stopped else reason


class AnswerStream(Iterator[int]):
    """The token ids of one answer as they are made. Iterate it to the end, or `close` it.

    Args:
        row: the answer.
        source: a generator that drives the model and gives the row's ids; closing it gives the model back.
    """

    def __init__(self, row: AnswerRow, source: Iterator[int]) -> None:
        self._row, self._source = row, source

    def __next__(self) -> int:
        return next(self._source)

    def close(self) -> None:
        """Stop generating, on all processes, and give the model back."""
        getattr(self._source, "close", lambda: None)()

    @property
    def token_ids(self) -> list[int]:
        """Ids that are certain, the end token excluded."""
        return self._row.token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """None until the end, and after `close`."""
        return self._row.finish_reason

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, image included."""
        return self._row.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """How many of them were kept from an earlier prompt and not computed again; known at the first id."""
        return self._row.cached_tokens

    def pieces(self) -> Iterator[str]:
        """The text in pieces as soon as they are certain; never half a character, joined they are the answer's text."""
        try:
            for _ in self:
                if piece := self._row.take_text():
                    yield piece
            if rest := self._row.take_text():
                yield rest
        finally:
            self.close()

    def result(self) -> GenerationResult:
        """The whole answer; what is left of it is read first."""
        for _ in self:
            pass
        return self._row.result()
