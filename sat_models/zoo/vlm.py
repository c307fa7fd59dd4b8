"""A loaded model and what it takes to talk to it: the object that `load_pretrained` gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import torch

from mixins.base import ZooModel
from sat_models.checkpoint.layout import SATCheckpoint
from sat_models.config import LanguageConfig
from sat_models.errors import InputError, refuse_unknown
from sat_models.models.families import family_of
from sat_models.processing.boxes import Box, parse_boxes
from sat_models.processing.checks import check_text
from sat_models.processing.intake import Images, MaxTiles
from sat_models.processing.processor import Processor
from sat_models.processing.prompts import Turn

if TYPE_CHECKING:
    from sat_models.generation.answer import GenerationResult, Request
    from sat_models.generation.engine import Engine
    from sat_models.generation.sampling import SamplingOptions
    from sat_models.generation.stream import AnswerPieces
    from sat_models.generation.strict.constraint import Constraint


class SamplingKeywords(TypedDict, total=False):
    """The keyword arguments of `generate` and `stream` that choose tokens; `SamplingOptions` has their defaults.

    max_new_tokens: most tokens of the answer; None (default): as many as the context leaves.
    max_length: most tokens in all, prompt and image included; None (default): what the model takes.
    temperature: 0 (default) is greedy.
    top_p, top_k: keep the likeliest tokens only; 1.0 and 0 (default) keep all.
    seed: the same seed gives the same answer; None (default) draws one.
    repetition_penalty: above 1.0 (default) makes tokens that the answer already holds less likely.
    """

    max_new_tokens: int | None
    max_length: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    repetition_penalty: float


@dataclass(frozen=True)
class Reading:
    """An answer taken apart: its boxes, and what its family writes in a form of its own.

    Attributes:
        boxes: those in its text.
        parts: what else answers of its family say in a form of their own (`Family.parts`), as JSON can hold it:
            CogAgent says under `agent` what to do on a screen. Empty for an answer that says none of it.
    """

    boxes: list[Box] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)


class VLM:
    """A loaded model with what it takes to talk to it.

    Attributes:
        model: torch module, in evaluation mode and without gradients; this process's part of it.
        processor: picture and text -> `VLMInputs`.
        config: sizes.
        device, dtype: of the weights.
        checkpoint: the files it came from.
        tokenizer_file: its `tokenizer.model`; None without one.
    """

    def __init__(
        self,
        model: ZooModel,
        processor: Processor,
        config: LanguageConfig,
        *,
        device: torch.device,
        dtype: torch.dtype,
        checkpoint: SATCheckpoint,
        tokenizer_file: Path | None = None,
    ) -> None:
        self.model, self.processor, self.config = model, processor, config
        self.device, self.dtype = device, dtype
        self.checkpoint, self.tokenizer_file = checkpoint, tokenizer_file

    @property
    def versions(self) -> tuple[str, ...]:
        """Prompt styles of this model: its own first, then the others of its family.

        `version` may name any style of the zoo (weights can be fine-tuned with any); these are the ones to offer.
        """
        return tuple(dict.fromkeys((self.processor.version, *family_of(self.config.model_class).styles)))

    def generate(
        self,
        image: Images,
        query: str,
        history: Sequence[Turn] = (),
        version: str | None = None,
        *,
        system: str | None = None,
        max_tiles: MaxTiles = None,
        top_logprobs: int = 0,
        constraint: Constraint | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> GenerationResult:
        """Answer a question; in a run of several processes, call it on each with the same arguments.

        Args:
            image: path, URL, bytes, `PIL.Image`, a list of them, or None for text only.
            query: the question.
            history: earlier (question, answer) pairs, oldest first.
            version: prompt style; None takes `processor.version`.
            system: None is the model's own system text, "" none at all.
            max_tiles: most tiles of one image, an overview not counted; a number, or a list with one per image; None is
                the model's own choice.
            top_logprobs: give the so many likeliest tokens of each place, too; 0 to 20.
            constraint: the form that the answer must have: `Constraint.json(schema)`, `.regex(…)`, `.choice([…])` or
                `.boxes()`; None: any.
            options: max_new_tokens, max_length, temperature, top_p, top_k, seed, repetition_penalty: see
                `SamplingKeywords`.

        Returns:
            `.text`, `.token_ids` (of the answer, end token and stop string excluded), `.finish_reason` ("stop" or
            "length"), `.logprobs` and `.top_logprobs` (one a token), `.score` (the probability of the whole answer) and
            `.box_scores`; `.incomplete` says so if a limit cut an answer off before it fitted its constraint. See
            `GenerationResult`.

        Raises:
            InputError: no tokenizer, a bad picture, an empty question, a prompt that leaves no room, a bad option, or
                one that there is not; a constraint that cannot be compiled, or that so few tokens cannot meet.
            MissingPackageError: a JSON schema or regex without llguidance.
        """
        how = {"system": system, "max_tiles": max_tiles, "logprobs": True, "top_logprobs": top_logprobs}
        how["constraint"] = constraint
        request = self.request(image, query, history, version, self._sampling(options, self.generate), **how)
        return self.engine().answer(request)

    def stream(
        self,
        image: Images,
        query: str,
        history: Sequence[Turn] = (),
        version: str | None = None,
        *,
        system: str | None = None,
        max_tiles: MaxTiles = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        constraint: Constraint | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> AnswerPieces:
        """As `generate`, but gives pieces of text as they are decoded, and behind the last one what `generate` returns,
        by the method `result`, there with scores where `logprobs` asks for them; bad arguments raise at the call."""
        how = {
            "system": system,
            "max_tiles": max_tiles,
            "logprobs": logprobs or bool(top_logprobs),
            "top_logprobs": top_logprobs,
            "constraint": constraint,
        }
        request = self.request(image, query, history, version, self._sampling(options, self.stream), **how)
        return self.engine().stream(request).pieces()

    def generate_batch(
        self,
        images: Iterable[Images],
        queries: Iterable[str],
        histories: Iterable[Sequence[Turn]] | None = None,
        version: str | None = None,
        *,
        max_rows: int = 16,
        system: str | None = None,
        max_tiles: MaxTiles = None,
        top_logprobs: int = 0,
        constraint: Constraint | Sequence[Constraint | None] | None = None,
        **options: Unpack[SamplingKeywords],
    ) -> list[GenerationResult]:
        """Answer several questions together; each answer is that of `generate` with the same arguments.

        Args:
            images: one `image` argument of `generate` for each question.
            queries: the questions.
            histories: one history for each question; None: none.
            max_rows: how many are answered at a time; memory grows with it.
            system, max_tiles, top_logprobs, options: as in `generate`, the same for all.
            constraint: as in `generate`, the same for all, or a list with one for each answer.

        Raises:
            InputError: no lists, lists of different length, or as `generate`.
        """
        images, queries = _listed("images", images), _listed("queries", queries)
        histories = [()] * len(queries) if histories is None else _listed("histories", histories)
        if not len(images) == len(queries) == len(histories):
            raise InputError(
                f"generate_batch was given {len(images)} images, {len(queries)} queries and {len(histories)} "
                "histories; it needs one of each per answer (None is an image that is not there)."
            )
        forms = constraint if isinstance(constraint, list | tuple) else [constraint] * len(queries)
        if len(forms) != len(queries):
            raise InputError(
                f"generate_batch was given {len(forms)} constraints and {len(queries)} queries; it needs one of each "
                "per answer (None is no constraint), or one constraint for all."
            )
        chosen = self._sampling(options, self.generate_batch)
        how = {"system": system, "max_tiles": max_tiles, "logprobs": True, "top_logprobs": top_logprobs}
        requests = [
            self.request(image, query, history, version, chosen, constraint=form, **how)
            for image, query, history, form in zip(images, queries, histories, forms, strict=True)
        ]
        return self.engine().answers(requests, max_rows=max_rows)

    def read(self, text: str, size: tuple[int, int] | None) -> Reading:
        """Take an answer apart.

        Args:
            text: the answer.
            size: width and height in pixels of the image that it is about; None without one, and nothing is found.

        Raises:
            InputError: no text; a size below 1.
        """
        check_text(text, "answer", allow_empty=True)
        if size is None:
            return Reading()
        boxes = parse_boxes(text, *size, form=self.processor.box_form)
        return Reading(boxes, family_of(self.config.model_class).parts(text, *size))

    def request(
        self,
        image: Images,
        query: str,
        history: Sequence[Turn] = (),
        version: str | None = None,
        options: SamplingOptions | None = None,
        **how: Any,
    ) -> Request:
        """A question as `Engine` takes it: its prompt, and what ends the answer; see `Request.of` for `how`."""
        from sat_models.generation.answer import Request

        return Request.of(self.processor, image, query, history=history, version=version, options=options, **how)

    def engine(self, *, keep_prefixes: int = 0, prefix_bytes: int | None = None) -> Engine:
        """The engine that answers `request`s behind `generate`; see `AnsweringModel` for the arguments.

        Raises InputError without a tokenizer (it knows the end).
        """
        from sat_models.generation.engine import Engine

        return Engine(
            self.model,
            eos_id=self.processor.tokenizer.eos_ids,
            max_length=self.processor.max_length,
            device=self.device,
            tokenizer=self.processor.tokenizer,
            keep_prefixes=keep_prefixes,
            prefix_bytes=prefix_bytes,
        )

    @staticmethod
    def _sampling(options: SamplingKeywords, asked: Callable[..., object]) -> SamplingOptions:
        from sat_models.generation.sampling import SamplingOptions

        known = SamplingKeywords.__annotations__
        refuse_unknown(options.keys() - known.keys(), asked, known)
        return SamplingOptions(**options)


def _listed(name: str, given: Iterable[Any]) -> list[Any]:
    """One value an answer, as a list. Raises InputError for what holds none, or is one value itself."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise InputError(f"{name} is {given!r:.80}; it must be a list with one for each answer.")
    return list(given)
