"""An answer from what is asked to what callers read: `Request` -> `AnswerRow` while it is made -> `GenerationResult`.

A row ends itself, by its own tokens alone: at an end token, before a stop string, or at its limit. So it ends in the
same place for every caller, and on every process that shares a model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sat_models.errors import InputError, ZooError
from sat_models.generation.sampling import SamplingOptions
from sat_models.generation.scores import (
    Alternative,
    RowScores,
    TokenScore,
    box_places,
    check_top,
    mean_probability,
    probability,
    within,
)
from sat_models.generation.stops import AnswerText, Behind, NoText, StrippedText
from sat_models.generation.strict.constraint import Constraint, as_constraint
from sat_models.generation.strict.guide import Guide, check_constraint
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
        top_logprobs: how many of the likeliest tokens to note besides in each place; more than 0 needs `logprobs`.
        stripped: white space at the ends of the text is no part of it.
        counts_prompt: a repetition penalty counts the prompt's tokens, too.
        constraint: the form that the answer must have; boxes with their form.

    Raises:
        InputError: a `top_logprobs` out of its range, or without `logprobs`.
    """

    inputs: VLMInputs
    options: SamplingOptions = field(default_factory=SamplingOptions)
    stops: tuple[str, ...] = ()
    lead: str = ""
    logprobs: bool = False
    stripped: bool = False
    counts_prompt: bool = False
    top_logprobs: int = 0
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        check_top(self.top_logprobs)
        if self.top_logprobs and not self.logprobs:
            raise InputError(f"top_logprobs is {self.top_logprobs} without logprobs; ask for both, or for none.")

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
        top_logprobs: int = 0,
        allow_empty_query: bool = False,
        system: str | None = None,
        max_tiles: MaxTiles = None,
        constraint: Constraint | None = None,
    ) -> Request:
        """A question in words: its prompt, and how its prompt style ends and strips answers.

        Args:
            image, query, history, version, allow_empty_query, system, max_tiles: see `Processor.__call__`.
            stops: besides the prompt style's.
            logprobs, top_logprobs: as the attributes.
            constraint: the form that the answer must have; boxes are those of the model's family. It says where the
                answer ends, so that the prompt style's stop strings end it between boxes only.

        Raises:
            InputError: as `Processor.__call__`, and as `Request`; a constraint that cannot be compiled, or stop strings
                beside one.
            MissingPackageError: as `check_constraint`.
        """
        style = processor.style(version)
        if constraint is not None:
            constraint = as_constraint(constraint).in_form(processor.box_form)
            constraint.refuse_stops(stops)
            check_constraint(constraint, processor.tokenizer, style.lead)
        how = {"allow_empty_query": allow_empty_query, "system": system, "max_tiles": max_tiles}
        inputs = processor(image, query, history=history, version=version, **how)
        ends = (*stops, *processor.stops(version)) if constraint is None or constraint.holds_text else ()
        counts_prompt = processor.form.penalises_text_prompts and inputs.vision_image is None
        chosen = options or SamplingOptions()
        noted = (logprobs, style.stripped, counts_prompt, top_logprobs)
        return cls(inputs, chosen, ends, style.lead, *noted, constraint=constraint)


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
        top_logprobs: of each place the likeliest tokens, (id, log probability) each, the likeliest first; None unless
            asked for.
        text_ends: of each token, how many characters of `text` it and those before it made.
        incomplete: what is to be said of an answer that was cut off before it fitted its constraint; None: nothing.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_tokens: int = 0
    cached_tokens: int = field(default=0, compare=False)
    logprobs: list[float] | None = field(default=None, compare=False)
    top_logprobs: list[tuple[Alternative, ...]] | None = field(default=None, compare=False)
    text_ends: list[int] = field(default_factory=list, compare=False)
    incomplete: str | None = None

    @property
    def score(self) -> float | None:
        """The probability of its tokens together, 0 to 1, to tell sure answers from unsure ones (see `scores`); None
        without `logprobs`."""
        return None if self.logprobs is None else probability(self.logprobs)

    @property
    def box_scores(self) -> list[float] | None:
        """Of each box in its text, in the order in which `VLM.read` gives the boxes, the mean probability of the tokens
        of its numbers, 0 to 1; None without `logprobs`."""
        if self.logprobs is None:
            return None
        return [mean_probability(self.logprobs_between(*place)) for place in box_places(self.text)]

    def logprobs_between(self, start: int, end: int) -> list[float]:
        """Those of the tokens that made the characters `text[start:end]`; none without `logprobs`."""
        return [self.logprobs[number] for number in within(self.text_ends, start, end)] if self.logprobs else []

    @property
    def token_scores(self) -> list[TokenScore]:
        """Its tokens with what the model says of each; empty without `logprobs`."""
        tops = self.top_logprobs or [()] * len(self.token_ids)
        return [TokenScore(*each) for each in zip(self.token_ids, self.logprobs or (), tops, strict=False)]


class AnswerRow:
    """One answer while it is made.

    Args:
        request: what was asked.
        budget: most tokens that may be sampled.
        end_ids: tokens that end an answer.
        decoder: a fresh one for its text; None: nobody reads text.
        guide: keeps it within its constraint; None: it has none.

    Attributes:
        sampled: all tokens that were chosen, those of a stop string included; what the model was fed with.
        prefix: what of its prompt is kept, once that was looked up; None before, and where nothing is ever kept.
        cached_tokens: how many tokens of the prompt were not computed; known at the first token.
        finish_reason: None while it runs, and if it was ended from outside or failed.
        error: why it failed, else None.
        scores: what the model said of its tokens; None unless asked for.
    """

    def __init__(
        self,
        request: Request,
        *,
        budget: int,
        end_ids: Collection[int],
        decoder: TextStream | None = None,
        guide: Guide | None = None,
    ) -> None:
        self.request, self.budget, self.guide = request, budget, guide
        self.sampled: list[int] = []
        self.prefix: Prefix | None = None
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self._end_ids = end_ids
        decoder = decoder or NoText()
        decoder = Behind(request.lead, decoder) if request.lead else decoder
        self._text = AnswerText(StrippedText(decoder) if request.stripped else decoder, request.stops)
        self.scores = RowScores(request.top_logprobs) if request.logprobs else None
        self._scores_taken = 0

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
        elif self.guide is not None and self._is_whole_with(token):
            self._end("stop")
        elif len(self.sampled) == self.budget:
            self._end("length")

    def _is_whole_with(self, token: int) -> bool:
        """True if its constraint allows nothing behind one more token."""
        try:
            self.guide.take(token)
        except ZooError as error:
            self.error = error
            return False
        return self.guide.complete

    def take_text(self) -> str:
        """The text that became certain since the last call; the pieces joined are the answer's text."""
        return self._text.take()

    def take_scores(self) -> list[TokenScore]:
        """Scores of the tokens that became certain since the last call; none unless asked for."""
        if self.scores is None:
            return []
        first, self._scores_taken = self._scores_taken, len(self.token_ids)
        return self.scores.read(self.token_ids, first)

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
        ids, scored = list(self.token_ids), {}
        if self.scores is not None:
            scores = self.scores.read(ids)
            scored["logprobs"] = [score.logprob for score in scores]
            scored["top_logprobs"] = [score.top for score in scores] if self.scores.top else None
        ends = list(self._text.ends)
        counts = (self.prompt_tokens, self.cached_tokens)
        if self.guide is not None and self.finish_reason == "length":
            scored["incomplete"] = self.guide.incomplete()
        return GenerationResult(self._text.text, ids, self.finish_reason, *counts, text_ends=ends, **scored)

    def _end(self, reason: FinishReason) -> None:
        self._text.finish()
        self.finish_reason = "stop" if self._text.stopped else reason
