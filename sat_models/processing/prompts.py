"""Prompts as parts: text, special tokens, places of images. Their ids are found in `encode`.

What a user writes is text, and text never makes a special token; the tokens of roles are parts of a template. Templates
stand in `models/<family>/prompts.py`. Importing this is light.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sat_models.errors import InputError, UnknownNameError

Turn = tuple[str, str]
"""One finished turn: (question, answer)."""


class Mark(enum.Enum):
    """A part whose ids depend on tokenizer or image."""

    IMAGE = "image"
    """Where the next image stands, with what its plan puts around it."""
    BEGIN = "begin"
    """The tokenizer's begin token."""
    END = "end"
    """The token that ends an answer."""


@dataclass(frozen=True)
class Special:
    """A special token by the name that the tokenizer knows it by."""

    name: str


@dataclass(frozen=True)
class Apart:
    """Text that is encoded by itself, not together with the text beside it."""

    text: str


@dataclass(frozen=True)
class Answer:
    """An earlier answer, which training trains, with the `lead` in front of it, which is encoded by itself."""

    text: str
    lead: str = ""


Part = str | Special | Apart | Answer | Mark
Words = str | tuple[str | Special | Apart | Mark, ...]
"""A piece of a template: text, or text between special tokens."""


@dataclass(frozen=True)
class PromptStyle:
    """One template. A family whose prompts do not follow this pattern overrides `parts`.

    Attributes:
        before: in front of a question.
        after: between the last question and the answer to be written.
        after_past: between an earlier question and its answer, None where the style keeps no history.
        between: between an earlier answer and the next question's `before`.
        summary: one line for help texts.
        opening: in front of everything.
        system: what stands behind it unless the caller says otherwise; None: there is no such place.
        around_system: on either side of it.
        around_image: on either side of each image.
        gap: text behind an image that no mark has placed.
        images_first: such images stand in front of the first `before`, not behind it.
        mark: what says in a question that an image stands there.
        images_anywhere: the weights were trained with images in any place; training data keep theirs then.
        stops: texts that end an answer besides the end token.
        stripped: white space at the ends of an answer is no part of it.
        lead: what the model writes in front of each answer, and nobody is shown.
        ending: what follows the end token of a sample's last answer in training, and is trained with it.
        in_training: the style that samples are made in, where it is another one; None: this one.
    """

    before: Words
    after: Words
    after_past: Words | None
    between: Words
    summary: str
    opening: Words = ""
    system: str | None = None
    around_system: tuple[Words, Words] = ("", "")
    around_image: tuple[Words, Words] = ("", "")
    gap: str = ""
    images_first: bool = True
    mark: str = "<image>"
    images_anywhere: bool = False
    stops: tuple[str, ...] = ()
    stripped: bool = False
    lead: str = ""
    ending: Words = ""
    in_training: PromptStyle | None = None

    @property
    def trained(self) -> PromptStyle:
        """The style that samples for this one are made in."""
        return self.in_training or self

    @property
    def keeps_history(self) -> bool:
        """True if earlier turns are part of the prompt (else they are left out and each turn stands alone)."""
        return self.after_past is not None

    def parts(
        self, query: str, history: Sequence[Turn] = (), *, images: int = 0, system: str | None = None
    ) -> list[Part]:
        """A prompt in order.

        Each image stands where a mark says so. In a call without any mark all stand in front of the text of the first
        question of the dialogue, history included.

        Args:
            query: the question to be answered now.
            history: earlier (question, answer) pairs, oldest first; styles without history leave them out.
            images: how many there are.
            system: None is the style's own, "" none at all.

        Raises:
            InputError: marks for some images only, or more marks than images.
        """
        turns = history if self.keeps_history else ()
        marks = sum(question.count(self.mark) for question, _ in turns) + query.count(self.mark)
        _check_marks(marks, images, self.mark)
        parts = [*_words(self.opening), *self._system(self.system if system is None else system)]
        unplaced = [part for _ in range(0 if marks else images) for part in (*self._image(), self.gap)]
        questions = [question for question, _ in turns] + [query]
        for number, question in enumerate(questions):
            in_front = unplaced if number == 0 else []
            parts += [*in_front, *_words(self.before)] if self.images_first else [*_words(self.before), *in_front]
            parts += self._question(question)
            if number < len(turns):
                parts += [*_words(self.after_past or ""), Answer(turns[number][1], self.lead), *_words(self.between)]
        return [*parts, *_words(self.after)]

    def images_up_to(self, count: int, turns: Sequence[Turn], images: int) -> int:
        """How many of a dialogue's images its first turns hold: as many as marks, or all where there is no mark.

        Raises:
            InputError: marks for some images only, or more marks than images.
        """
        marks = [question.count(self.mark) for question, _ in turns]
        _check_marks(sum(marks), images, self.mark)
        return sum(marks[:count]) if any(marks) else images

    def _system(self, text: str | None) -> Iterator[Part]:
        if text:
            yield from (*_words(self.around_system[0]), text, *_words(self.around_system[1]))

    def _image(self) -> tuple[Part, ...]:
        return (*_words(self.around_image[0]), Mark.IMAGE, *_words(self.around_image[1]))

    def _question(self, text: str) -> Iterator[Part]:
        """A question's text, cut at its marks."""
        first, *others = text.split(self.mark)
        yield first
        for other in others:
            yield from (*self._image(), other)


BASE = PromptStyle("", "", None, "", "the question as it is; no history")
"""The style that every model understands that has been taught no dialogue."""


def find_style(styles: Mapping[str, PromptStyle], version: str) -> PromptStyle:
    """The style of a name, of those that there are.

    Raises:
        UnknownNameError: `version` is not one of `styles`.
    """
    style = styles.get(version) if isinstance(version, str) else None
    if style is None:
        raise UnknownNameError("prompt version", str(version), styles, hint="Choose one with --version.")
    return style


def build_prompt(style: PromptStyle, query: str, history: Sequence[Turn] = ()) -> str:
    """The text of a prompt without images (for CogVLM, the text after them); special tokens by their names."""
    return text_of(style.parts(query, history))


def text_of(parts: Sequence[Part]) -> str:
    """The text of a prompt; special tokens by their names, places of images left out."""
    return "".join(_text(part) for part in parts)


def _check_marks(marks: int, images: int, mark: str) -> None:
    if marks not in (0, images):
        raise InputError(
            f"The prompt has {marks} mark(s) {mark} for {images} image(s). Write one where each belongs, or none at "
            "all: then they stand in front of the first question."
        )


def _text(part: Part) -> str:
    if isinstance(part, Special):
        return part.name
    if isinstance(part, Answer):
        return part.lead + part.text
    if isinstance(part, Apart):
        return part.text
    return part if isinstance(part, str) else ""


def _words(words: Words) -> tuple[str | Special | Apart | Mark, ...]:
    return (words,) if isinstance(words, str) else words
