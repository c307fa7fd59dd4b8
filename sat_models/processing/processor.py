"""Picture and text -> `VLMInputs`: the one object that inference, serving and training feed their models from."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from sat_models.config import COGVLM_FORM, ImageForm, ImagePlan, SequenceForm
from sat_models.errors import ConfigError, InputError
from sat_models.processing.box_forms import BOX_FORMS, BoxForm
from sat_models.processing.checks import check_text, check_turns
from sat_models.processing.image import ImageSource, load_image
from sat_models.processing.inputs import TokenLayout, VLMInputs
from sat_models.processing.layout import MIN_ANSWER_ROOM, Piece, layout_prompt, layout_training
from sat_models.processing.pixels import image_to_tensor, planned_pixels
from sat_models.processing.prompts import PromptStyle, Turn, build_prompt, dialogue_parts, find_style
from sat_models.processing.tokenizer_files import DEFAULT_TOKENIZER
from sat_models.processing.tokens import Tokenizer

logger = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_TOKEN = 16
"""Characters that hardly any token exceeds; of a text of more of them than the context could hold so, the beginning is
looked at first, so that work does not grow with a text that cannot fit."""

Images = ImageSource | Sequence[ImageSource] | None
"""What callers may pass as `image`: one, several, or none (text only)."""


@dataclass(frozen=True)
class _Encoded:
    """A prompt as ids: in front of each picture, behind the last one, and where in the latter earlier answers are."""

    lead: list[list[int]]
    ids: list[int]
    answers: list[tuple[int, int]]

    @property
    def num_text(self) -> int:
        return len(self.ids) + sum(map(len, self.lead))

    def pieces(self, images: Sequence[ImagePlan]) -> list[Piece]:
        """The prompt in order."""
        in_front = (piece for pair in zip(self.lead, images, strict=True) for piece in pair)
        return [*in_front, self.ids]

    def past_answers(self, untrained: Collection[int]) -> list[tuple[int, int, int]]:
        """Where the earlier answers are that are trained: number of the piece, start and end in it."""
        last = 2 * len(self.lead)
        return [(last, *span) for number, span in enumerate(self.answers) if number not in untrained]


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
    ) -> None:
        """Args:
            tokenizer: None for a model that is only asked for logits; text calls then name the missing flag.
            images: how the model takes images (`config.images`).
            styles: prompt styles that a call may name.
            version: default prompt style.
            cross_image_size: side in pixels of the high-resolution branch; None for models without one.
            max_length: context in tokens.
            form: what the model's sequence looks like (`config.sequence_form`).

        Raises:
            ConfigError: a size that is not positive.
            UnknownNameError: unknown `version`.
        """
        find_style(styles, version)
        images.plan()
        if max_length < 1:
            raise ConfigError(f"max_length is {max_length}; it must be at least 1. Check the model's config.")
        self._tokenizer = tokenizer
        self.images = images
        self.styles, self.version = styles, version
        self.cross_image_size = cross_image_size
        self.max_length = max_length
        self.form = form

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be read and written."""
        return self._tokenizer is not None

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
        max_tiles: int | Sequence[int] | None = None,
        allow_empty_query: bool = False,
    ) -> VLMInputs:
        """Inputs of a prompt, batch dimension 1, pixels in fp32 on CPU.

        Args:
            image: path, URL, bytes, `PIL.Image`, a list of them, or None for text only.
            query: the question.
            history: earlier (question, answer) pairs.
            version: prompt style; None takes the model's own.
            max_tiles: see `plans`.
            allow_empty_query: send the bare template (`--no_prompt`).

        Raises:
            InputError: no tokenizer, a bad picture, an empty question, or a prompt that leaves no room for an answer.
            UnknownNameError: unknown `version`.
        """
        check_text(query, "question", allow_empty=allow_empty_query)
        sources, style, turns = self._sources(image), self.style(version), check_turns(history, "history")
        plans = self.plans(sources, max_tiles)
        beginning = build_prompt(style, query, turns)[: LONGEST_TOKEN * self.max_length + 1]
        if len(beginning) > LONGEST_TOKEN * self.max_length:
            self._check_room(len(self.tokenizer.encode(beginning)), plans, "more than ")
        prompt = self._encode(style, query, turns, len(sources))
        self._check_room(prompt.num_text, plans)
        layout = layout_prompt(prompt.pieces(plans), bos_id=self.tokenizer.bos_id, form=self.form)
        vision, cross = self._pixels(sources, plans)
        return VLMInputs.from_layout(layout, vision_image=vision, cross_image=cross)

    def _check_room(self, num_text: int, plans: Sequence[ImagePlan], how_many: str = "") -> None:
        """Raises InputError if so much leaves no room for an answer."""
        length = self.prompt_length(num_text, plans)
        if length >= self.max_length:
            tokens = sorted({self.form.image_tokens(plan) for plan in plans or [self.images.plan()]})
            raise InputError(
                f"The prompt takes {how_many}{length} tokens ({len(plans)} picture(s) of "
                f"{' or '.join(map(str, tokens))}, {num_text} of text) but the context is "
                f"{self.max_length} with the answer. Shorten the question or the history.",
                hint="Or raise max_length.",
            )

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

    def plans(self, image: Images, max_tiles: int | Sequence[int] | None = None) -> list[ImagePlan]:
        """What becomes of the images of a call.

        Args:
            max_tiles: most tiles of one image, an overview not counted; a number, or a list with one per image; None is
                the model's own choice.

        Raises:
            InputError: `max_tiles` is no such thing, or above 1 for a model that does not cut; an image that has to be
                opened for its plan and cannot be.
        """
        sources = as_list(image)
        tiles = self._tiles(max_tiles, len(sources))
        sizes = [None if self.images.constant else _opened(source).size for source in sources]
        return [self.images.plan(size, max_tiles=most) for size, most in zip(sizes, tiles, strict=True)]

    def _tiles(self, max_tiles: int | Sequence[int] | None, num_images: int) -> list[int | None]:
        """`max_tiles` for each image."""
        several = isinstance(max_tiles, (list, tuple))
        given = list(max_tiles) if several else [max_tiles] * num_images
        for most in given if several else [max_tiles]:
            if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
                raise InputError(f"max_tiles is {max_tiles!r:.80}; it must be a number from 1, or one for each image.")
            if most is not None and most > 1 and self.images.most_tiles == 1:
                raise InputError(
                    f"max_tiles is {max_tiles}, but this model does not cut images into tiles. Leave it out or give 1."
                )
        if len(given) != num_images:
            raise InputError(f"max_tiles has {len(given)} numbers for {num_images} image(s). Give one for each.")
        return given

    def _sources(self, image: Images) -> list[ImageSource]:
        """The images of a call, opened where their plans depend on them."""
        sources = as_list(image)
        return sources if self.images.constant else list(map(load_image, sources))

    def _pixels(
        self, sources: Sequence[ImageSource], plans: Sequence[ImagePlan]
    ) -> tuple[Tensor | list[Tensor] | None, Tensor | None]:
        """Pixels for the vision tower (`VLMInputs.vision_image`) and the high-resolution branch, None where absent."""
        images = list(map(load_image, sources))
        if not images:
            return None, None
        parts = [planned_pixels(image, plan, self.images.processing) for image, plan in zip(images, plans, strict=True)]
        vision = torch.cat(parts) if len({part.shape[1:] for part in parts}) == 1 else parts
        if self.cross_image_size is None:
            return vision, None
        return vision, torch.stack([image_to_tensor(image, self.cross_image_size) for image in images])

    def training_samples(
        self,
        image: Images,
        turns: Sequence[Turn],
        *,
        version: str | None = None,
        max_length: int | None = None,
        untrained: Collection[int] = (),
    ) -> list[VLMInputs]:
        """Training samples of one dialogue, each a batch of one with `labels`, not padded (see `layout.collate`).

        Args:
            turns: (question, answer) pairs; questions may be empty, answers not.
            version: prompt style; None takes the model's own.
            max_length: longest sample in tokens; None takes the context.
            untrained: numbers of turns, from 0, whose answers are read but not trained.

        Raises:
            InputError: no turns, an empty answer, a bad picture, or a first question that does not fit.
            UnknownNameError: unknown `version`.
        """
        sources = self._sources(image)
        plans = self.plans(sources)
        layouts = self.training_layouts(turns, plans, version=version, max_length=max_length, untrained=untrained)
        vision, cross = self._pixels(sources, plans)
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
    ) -> list[TokenLayout]:
        """`training_samples` without their pixels, for images of these plans."""
        turns = check_turns(turns, "dialogue")
        for number, (_, answer) in enumerate(turns, 1):
            check_text(answer, f"answer of turn {number}")
        if not turns:
            raise InputError("A training sample needs at least one (question, answer) pair; got none.")
        limit, style = max_length or self.max_length, self.style(version)
        return [
            self._dialogue(
                [turns[place] for place in part], style, limit, plans,
                untrained={number for number, place in enumerate(part) if place in untrained},
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

    def question_length(self, query: str, plans: Sequence[ImagePlan], version: str | None = None) -> int:
        """Tokens of the prompt of a first question. What leaves no `MIN_ANSWER_ROOM` cannot be trained on."""
        return self.prompt_length(self._encode(self.style(version), query, (), len(plans)).num_text, plans)

    def _dialogue(
        self,
        turns: Sequence[Turn],
        style: PromptStyle,
        limit: int,
        plans: Sequence[ImagePlan],
        *,
        untrained: Collection[int] = (),
    ) -> TokenLayout:
        """Layout of one sample from as many of the first turns as fit; its last answer is trained."""

        def too_long(count: int) -> bool:
            *past, (query, _) = turns[:count]
            num_text = self._encode(style, query, past, len(plans)).num_text
            return self.prompt_length(num_text, plans) > limit - MIN_ANSWER_ROOM

        ends = [count for count in range(1, len(turns) + 1) if count - 1 not in untrained]
        kept = ends[-1]
        if len(ends) > 1 and too_long(kept):
            kept = ends[max(0, bisect.bisect_left(ends, True, key=too_long) - 1)]
            logger.info("dialogue of %d turns cut to %d: max_length is %d tokens", len(turns), kept, limit)
        *past, (query, answer) = turns[:kept]
        prompt = self._encode(style, query, past, len(plans), find_answers=not self.form.prefix_attention)
        return layout_training(
            prompt.pieces(plans),
            self.tokenizer.encode(answer),
            bos_id=self.tokenizer.bos_id,
            eos_id=self.tokenizer.eos_id,
            max_length=limit,
            past_answers=prompt.past_answers(untrained),
            form=self.form,
        )

    def _encode(
        self, style: PromptStyle, query: str, history: Sequence[Turn], num_images: int, *, find_answers: bool = False
    ) -> _Encoded:
        """A prompt as ids. Where the style ends earlier answers, the end token cuts the text.

        `find_answers`, which training asks for, encodes up to each end of each earlier answer once more.
        """
        lead, text, spans = dialogue_parts(style, query, history, pictures=num_images)
        encode = self.tokenizer.encode
        if not style.ends_answers:
            ids = encode(text)
            answers = [self._token_span(text, ids, start, end) for start, end in spans if find_answers]
        else:
            ids, answers, done = [], [], 0
            for start, end in spans:
                piece = encode(text[done:end])
                if find_answers:
                    first, last = self._token_span(text[done:end], piece, start - done, end - done)
                    answers.append((len(ids) + first, len(ids) + last))
                ids += [*piece, self.tokenizer.eos_id]
                done = end
            ids += encode(text[done:])
        return _Encoded([encode(part) for part in lead], ids, answers)

    def _token_span(self, text: str, ids: list[int], start: int, end: int) -> tuple[int, int]:
        """Index range in `ids` of the characters [start, end) of `text`.

        Both ends are found by encoding the text up to there: tokens that stay the same lie before the cut, so a token
        over a cut (the space before an answer's first word) belongs to what follows it.
        """
        return tuple(_shared(self.tokenizer.encode(text[:cut]), ids) for cut in (start, end))


def as_list(image: Images) -> list[ImageSource]:
    """The pictures of an `image` argument: None is none of them, a list or tuple is itself."""
    if image is None:
        return []
    return list(image) if isinstance(image, (list, tuple)) else [image]


def _opened(source: ImageSource) -> Image.Image:
    return source if isinstance(source, Image.Image) else load_image(source)


def _shared(left: list[int], right: list[int]) -> int:
    """Length of the common beginning."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count
