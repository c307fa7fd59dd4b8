"""Sizes of models that plan an image before they write its codes, and the words that they read and write."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from sat_models.config.base import require_positive
from sat_models.config.image_tokens import ImageTokenConfig
from sat_models.errors import ConfigError, InputError

PER_OBJECT = 5
"""Tokens of a plan about one object: colour, form, left, top, right."""


@dataclass(frozen=True, kw_only=True)
class PlannedConfig(ImageTokenConfig):
    """A model whose text has one length, and which writes a plan before the codes.

    Its words stand in this order: the codes of images; the words of a plan (`backgrounds`, `colors`, `forms`, one for
    "no object", `steps_of_place` places from one side of the image to the other); `<start_of_image>`, padding, and the
    words of prompts.

    Attributes:
        image_start: tokens of the text; the position of `<start_of_image>` behind it.
        words: of prompts, in lower case, marks included.
        backgrounds, colors, forms: names of what a plan can say.
        steps_of_place: how finely it says where an object stands.
        most_objects: of a plan.
        grid: codes on either side of an image.
        patch: pixels on either side of a code.
        levels: of the codec: how many values each number of a code has.
        codec_width, codec_layers: of its decoder.
    """

    image_start: int
    words: tuple[str, ...]
    backgrounds: tuple[str, ...]
    colors: tuple[str, ...]
    forms: tuple[str, ...]
    steps_of_place: int = 48
    most_objects: int = 3
    grid: int = 12
    patch: int = 8
    levels: tuple[int, ...] = (8, 5, 5, 5)
    codec_width: int = 128
    codec_layers: int = 4

    PROMPT_LANGUAGES: ClassVar[tuple[str, ...]] = ("en",)

    def __post_init__(self) -> None:
        for name in ("words", "backgrounds", "colors", "forms", "levels"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()
        sizes = ("image_start", "steps_of_place", "most_objects", "grid", "patch", "codec_width", "codec_layers")
        require_positive(self, *sizes)
        follows = {
            "image_codes": self.codes + self.plan_words,
            "max_sequence_length": self.image_start + 1 + self.steps,
        }
        for name, value in follows.items():
            if getattr(self, name) != value:
                raise ConfigError(f"{name} = {getattr(self, name)}; what else the config says makes it {value}")
        if self.vocab_size < (least := self.first_word + len(self.words)):
            raise ConfigError(f"vocab_size = {self.vocab_size}; with its words it must be at least {least}")

    @property
    def codes(self) -> int:
        """Number of image codes, the first words."""
        return math.prod(self.levels)

    @property
    def plan_words(self) -> int:
        """Number of words that only plans have."""
        return len(self.backgrounds) + len(self.colors) + len(self.forms) + 1 + self.steps_of_place

    @property
    def plan_length(self) -> int:
        """Tokens of a plan."""
        return 1 + PER_OBJECT * self.most_objects

    @property
    def cells(self) -> int:
        """Codes of an image."""
        return self.grid**2

    @property
    def start(self) -> int:
        """Id of `<start_of_image>`."""
        return self.image_codes

    @property
    def padding(self) -> int:
        """Id of what follows the words of a prompt."""
        return self.image_codes + 1

    @property
    def first_word(self) -> int:
        """Id of the first word of prompts."""
        return self.image_codes + 2

    @property
    def steps(self) -> int:
        """Tokens of a plan and its image: what a drawing takes."""
        return self.plan_length + self.cells

    @property
    def guidance(self) -> float:
        """There is none: 1 is the text alone."""
        return 1.0

    @property
    def usual_size(self) -> tuple[int, int]:
        """Width and height in pixels; there is no other."""
        return self.grid * self.patch, self.grid * self.patch

    def check_size(self, width: int, height: int) -> None:
        """Raise InputError for any size but the usual one."""
        if (width, height) != self.usual_size:
            usual = "x".join(map(str, self.usual_size))
            raise InputError(f"the size {width}x{height} cannot be drawn: this model draws {usual}; leave it out")
