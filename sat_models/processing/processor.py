"""Picture and text -> `VLMInputs`: the one object that inference, serving and training feed their models from."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sat_models.config import COGVLM_FORM, ImageForm, ImagePlan, SequenceForm
from sat_models.errors import ConfigError, InputError
from sat_models.processing.box_forms import BOX_FORMS, BoxForm
from sat_models.processing.checks import check_text, check_turns
from sat_models.processing.encode import EncodedPrompt, answer_ids, encode_prompt, encode_words
from sat_models.processing.image import ImageSource
from sat_models.processing.inputs import TokenLayout, VLMInputs
from sat_models.processing.intake import Images, MaxTiles, as_list, pixels_of, plans_of, sources_of
from sat_models.processing.layout import MIN_ANSWER_ROOM, layout_prompt, layout_training, prompt_length, text_length
from sat_models.processing.prompts import Answer, Part, PromptStyle, Turn, find_style, text_of
from sat_models.processing.room import no_room
from sat_models.processing.tokenizer_files import DEFAULT_TOKENIZER
from sat_models.processing.tokens import Tokenizer

logger = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_TOKEN = 16
"""Characters that hardly any token exceeds; of a text of more of them than the context could hold so, the beginning is
looked at first, so that work does not grow with a text that cannot fit."""


class Processor:
    """Prepares prompts and training samples for one model.

    Attributes:
        styles: prompt styles by name.
        version: the one that is used when a call names none.
        max_length: context in tokens, prompt and answer together.
        images: how the model takes images.
        form: what the model's sequence looks like.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        *,
        images: ImageForm,
        styles: Mapping[str, PromptStyle],
        version: str,
        cross_image_size: int | None = None,
        max_length: int = 2048,
        form: SequenceForm = COGVLM_FORM,
        system: str | None = None,
    ) -> None:
        """Takes what the model wants, and reads nothing yet.

        Args:
            tokenizer: None for a model that is only asked for logits; text calls then name the missing flag.
            images: how the model takes images (`config.images`).
            styles: prompt styles that a call may name.
            version: default prompt style.
            cross_image_size: side in pixels of the high-resolution branch; None for models without one.
            max_length: context in tokens.
            form: what the model's sequence looks like (`config.sequence_form`).
            system: the checkpoint's own system text, for prompt styles that have one; None leaves it to the style.

        Raises:
            ConfigError: a size that is not positive.
            UnknownNameError: unknown `version`.
        """
        find_style(styles, version)
        images.plan()
        if max_length < 1:
            raise ConfigError(f"max_length is {max_length}; it must be at least 1. Check the model's config.")
        self._tokenizer, self.images, self.styles, self.version = tokenizer, images, styles, version
        self.cross_image_size = cross_image_size
        self.max_length = max_length
        has_begin = tokenizer is None or tokenizer.bos_id is not None
        self.form = replace(form, begin=form.begin and has_begin)
        self.system = system

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            InputError: there is none.
        """
        if self._tokenizer is None:
            raise InputError(
                "This model was loaded without a tokenizer, so it cannot read or write text (logits for given ids "
                f"work). Load it with local_tokenizer=... (--local_tokenizer): a tokenizer.model file, its folder, or "
                f"a Hugging Face repository such as {DEFAULT_TOKENIZER}."
            )
        return self._tokenizer

    def __call__(
        self,
        image: Images,
        query: str,
        *,
        history: Sequence[Turn] | None = (),
        version: str | None = None,
        system: str | None = None,
        max_tiles: MaxTiles = None,
        allow_empty_query: bool = False,
    ) -> VLMInputs:
        """Inputs of a prompt, batch dimension 1, pixels in fp32 on CPU.

        Args:
            image: path, URL, bytes, `PIL.Image`, a list of them, or None for text only.
            query: the question.
            history: earlier (question, answer) pairs.
            version: prompt style; None takes the model's own.
            system: None is the model's own system text, "" none at all.
            max_tiles: most tiles of one image, an overview not counted; a number, or a list with one per image; None is
                the model's own choice.
            allow_empty_query: send the bare template (`--no_prompt`).

        Raises:
            InputError: no tokenizer, a bad picture, an empty question, marks that do not fit the images, a system text
                or tiles for a model that has none, or a prompt that leaves no room for an answer.
            UnknownNameError: unknown `version`.
        """
        check_text(query, "question", allow_empty=allow_empty_query)
        style, turns, sources = self.style(version), check_turns(history, "history"), sources_of(image, self.images)
        plans = plans_of(sources, self.images, max_tiles)
        parts = self._parts(style, query, turns, plans, system)
        beginning = text_of(parts)[: LONGEST_TOKEN * self.max_length + 1]
        if len(beginning) > LONGEST_TOKEN * self.max_length:
            self._check_room(len(self.tokenizer.encode(beginning)), plans, sources, at_least=True)
        prompt = encode_prompt(parts, plans, self.tokenizer)
        self._check_room(text_length(prompt.pieces), plans, sources)
        layout = layout_prompt(prompt.pieces, bos_id=self.tokenizer.bos_id, form=self.form)
        vision, cross = pixels_of(sources, plans, self.images, self.cross_image_size)
        return VLMInputs.from_layout(layout, vision_image=vision, cross_image=cross)

    def _check_room(
        self, num_text: int, plans: Sequence[ImagePlan], sources: Sequence[ImageSource], *, at_least: bool = False
    ) -> None:
        """Raises InputError if so much text (or more, `at_least`) leaves no room for an answer."""
        how = {"images": self.images, "form": self.form, "limit": self.max_length, "at_least": at_least}
        if (error := no_room(num_text, plans, sources, **how)) is not None:
            raise error

    def style(self, version: str | None = None) -> PromptStyle:
        """A prompt style by name; None: the default one. Raises UnknownNameError."""
        return find_style(self.styles, version or self.version)

    @property
    def box_form(self) -> BoxForm:
        """How this model's family writes boxes."""
        return BOX_FORMS[self.form.boxes]

    def stops(self, version: str | None = None) -> tuple[str, ...]:
        """Texts that end an answer besides the end token."""
        return self.style(version).stops

    def prompt_length(self, num_text: int, plans: Sequence[ImagePlan] = ()) -> int:
        """Tokens of a prompt with so many tokens of text and these images."""
        return self.form.fixed_tokens(plans) + num_text

    def plans(self, image: Images, max_tiles: MaxTiles = None) -> list[ImagePlan]:
        """The plans of the images of a call. Raises as `plans_of`."""
        return plans_of(as_list(image), self.images, max_tiles)

    def training_samples(self, image: Images, turns: Sequence[Turn], **options: Any) -> list[VLMInputs]:
        """Training samples of one dialogue, each a batch of one with `labels`, not padded (see `layout.collate`).

        Args:
            turns, options: those of `training_layouts`.

        Raises:
            InputError: no turns, an empty answer, a bad picture, or a first question that does not fit.
            UnknownNameError: unknown `version`.
        """
        plans = plans_of(sources := sources_of(image, self.images), self.images)
        return self.with_pixels(self.training_layouts(turns, plans, **options), sources, plans)

    def with_pixels(
        self, layouts: Sequence[TokenLayout], sources: Sequence[ImageSource], plans: Sequence[ImagePlan]
    ) -> list[VLMInputs]:
        """Layouts that begin with the first of these images, each as a batch of one with the pixels of all."""
        used = max((layout.num_images for layout in layouts), default=0)
        vision, cross = pixels_of(sources[:used], plans[:used], self.images, self.cross_image_size)
        return [VLMInputs.from_layout(layout, vision_image=vision, cross_image=cross) for layout in layouts]

    def training_sample(self, image: Images, turns: Sequence[Turn], **options: Any) -> VLMInputs:
        """The last one of `training_samples`: that of all turns together, where there are such."""
        return self.training_samples(image, turns, **options)[-1]

    def training_layouts(
        self,
        turns: Sequence[Turn],
        plans: Sequence[ImagePlan],
        *,
        version: str | None = None,
        max_length: int | None = None,
        untrained: Collection[int] = (),
        system: str | None = None,
    ) -> list[TokenLayout]:
        """`training_samples` without their pixels, for images of these plans.

        Args:
            turns: (question, answer) pairs; questions may be empty, answers not.
            version: prompt style; None takes the model's own.
            max_length: longest sample in tokens; None takes the context.
            untrained: numbers of turns, from 0, whose answers are read but not trained.
            system: None is the model's own system text, "" none at all.
        """
        turns = check_turns(turns, "dialogue")
        for number, (_, answer) in enumerate(turns, 1):
            check_text(answer, f"answer of turn {number}")
        if not turns:
            raise InputError("A training sample needs at least one (question, answer) pair; got none.")
        limit, style = max_length or self.max_length, self.style(version).trained
        return [
            self._dialogue(
                [turns[place] for place in part], style, limit, plans,
                untrained={number for number, place in enumerate(part) if place in untrained}, system=system,
            )
            for part in self.split_turns(range(len(turns)), version)
            if part[-1] not in untrained
        ]  # fmt: skip

    def split_turns(self, turns: Sequence[T], version: str | None = None) -> list[Sequence[T]]:
        """The turns (or what stands for them) of each training sample of a dialogue.

        Styles with history (`chat`, `chat_old`) give one sample in which every answer is trained; `base` and `vqa`
        give one sample per turn. For a GLM, which reads its context both ways, each answer is the end of a sample of
        its own, with the turns before it as history. Last turns that do not fit into `max_length` are left out of a
        sample, and the last answer kept is cut to fit.
        """
        if not self.style(version).keeps_history:
            return [[turn] for turn in turns]
        if self.form.prefix_attention:
            return [turns[:count] for count in range(1, len(turns) + 1)]
        return [turns]

    def question_length(
        self, query: str, plans: Sequence[ImagePlan], version: str | None = None, system: str | None = None
    ) -> int:
        """Tokens of the prompt of a first question. What leaves no `MIN_ANSWER_ROOM` cannot be trained on."""
        prompt = self._encode(self.style(version).trained, query, (), plans, system=system)
        return prompt_length(prompt.pieces, self.form)

    def _dialogue(
        self,
        turns: Sequence[Turn],
        style: PromptStyle,
        limit: int,
        plans: Sequence[ImagePlan],
        *,
        untrained: Collection[int] = (),
        system: str | None = None,
    ) -> TokenLayout:
        """Layout of one sample from as many of the first turns as fit; its last answer is trained."""

        def encoded(count: int, *, find_answers: bool = False) -> EncodedPrompt:
            *past, (query, _) = turns[:count]
            own = plans[: style.images_up_to(count, turns, len(plans))]
            return self._encode(style, query, past, own, find_answers=find_answers, system=system)

        def too_long(count: int) -> bool:
            return prompt_length(encoded(count).pieces, self.form) > limit - MIN_ANSWER_ROOM

        ends = [count for count in range(1, len(turns) + 1) if count - 1 not in untrained]
        kept = ends[-1]
        if len(ends) > 1 and too_long(kept):
            kept = ends[max(0, bisect.bisect_left(ends, True, key=too_long) - 1)]
            logger.info("dialogue of %d turns cut to %d: max_length is %d tokens", len(turns), kept, limit)
        prompt = encoded(kept, find_answers=not self.form.prefix_attention)
        return layout_training(
            prompt.pieces,
            answer_ids(Answer(turns[kept - 1][1], style.lead), self.tokenizer),
            bos_id=self.tokenizer.bos_id,
            eos_id=self.tokenizer.eos_id,
            max_length=limit,
            past_answers=prompt.trained(untrained),
            ending=encode_words(style.ending, self.tokenizer),
            form=self.form,
        )

    def _encode(
        self,
        style: PromptStyle,
        query: str,
        history: Sequence[Turn],
        plans: Sequence[ImagePlan],
        *,
        find_answers: bool = False,
        system: str | None = None,
    ) -> EncodedPrompt:
        """A prompt as ids."""
        parts = self._parts(style, query, history, plans, system)
        return encode_prompt(parts, plans, self.tokenizer, find_answers=find_answers)

    def _parts(
        self,
        style: PromptStyle,
        query: str,
        history: Sequence[Turn],
        plans: Sequence[ImagePlan],
        system: str | None = None,
    ) -> list[Part]:
        """A prompt in order. Raises InputError for a system text where the style has no place for one."""
        if system is not None:
            check_text(system, "system text", allow_empty=True)
        if system and style.system is None:
            raise InputError(
                f"A system text was given ({system!r:.40}), but this model's prompt ({style.summary}) has no place for "
                "one. Leave it out, or write it into the question."
            )
        if system is None and style.system is not None:
            system = self.system
        return style.parts(query, history, images=len(plans), system=system)
