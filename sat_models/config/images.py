"""How a family prepares its images: what becomes of the pixels, and how many tokens an image takes.

Data and arithmetic only; `processing.pixels` makes the pixels, `processing.layout` the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

from sat_models.errors import ConfigError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

Size = tuple[int, int]
"""(width, height) in pixels."""


@dataclass(frozen=True, kw_only=True)
class ImageProcessing:
    """The way of an image's pixels to the tower. The defaults are CLIP's.

    Attributes:
        fit: how a whole image becomes a square: "stretch" it, "pad" it with `colour`, or "crop" its middle.
        resampling: Pillow's way to resize.
        mean, std: subtracted from and divided into each channel of [0, 1].
        colour: what lies around an image that does not fill its canvas, 0 to 255; None is `mean`.
    """

    fit: Literal["stretch", "pad", "crop"] = "stretch"
    resampling: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    colour: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        for name, allowed in (("fit", ("stretch", "pad", "crop")), ("resampling", ("bicubic", "bilinear"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} of images is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")

    @property
    def background(self) -> tuple[int, int, int]:
        """The colour around an image, 0 to 255."""
        return self.colour or tuple(int(channel * 255) for channel in self.mean)


@dataclass(frozen=True, kw_only=True)
class ImagePlan:
    """The plan for one image.

    Attributes:
        length: tokens that tower and projector make of it, learned begin and end vectors not counted.
        canvas: size that the image is brought to.
        box: (left, top, width, height) of the image on its canvas, the rest is background; None: it fills all of it.
        transposed: it is resized columns first, as a portrait is that is laid on its side for it.
        grid: (columns, rows) of equal tiles that the canvas is cut into, row by row.
        overview: the whole image follows once more, at the size of a tile.
        before, after: token ids right around it.
    """

    length: int
    canvas: Size
    box: tuple[int, int, int, int] | None = None
    transposed: bool = False
    grid: tuple[int, int] = (1, 1)
    overview: bool = False
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.length < 1 or min(*self.canvas, *self.grid) < 1:
            raise ConfigError(
                f"an image of {self.length} tokens on a canvas of {self.canvas} px, cut into {self.grid} tiles: all "
                "must be at least 1. Check the model's config."
            )

    @property
    def tile(self) -> Size:
        """Size of what the tower sees at once."""
        return self.canvas[0] // self.grid[0], self.canvas[1] // self.grid[1]

    @property
    def num_tiles(self) -> int:
        """T, how many images the tower sees for this one."""
        return self.grid[0] * self.grid[1] + self.overview


class ImageForm(Protocol):
    """How a model takes images: a family's answer to "what becomes of an image of this size?".

    Attributes:
        processing: of the pixels.
        most_tiles: tiles that an image may be cut into unless a call says otherwise; 1: the model does not cut.
        constant: the plan is the same for every image, so that none has to be opened for it.

    A form may have `most_tiles_of_several`, the same as `most_tiles` for each image of a call with several.
    """

    processing: ImageProcessing
    most_tiles: int
    constant: bool

    def plan(self, size: Size | None = None, *, max_tiles: int | None = None) -> ImagePlan:
        """The plan of an image.

        Args:
            size: of the image; None gives the least that any image takes.
            max_tiles: at most so many tiles, an overview not counted; None: `most_tiles`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class SquareImages:
    """Every image becomes one square and takes the same number of tokens.

    Attributes:
        side: of the square in pixels.
        length: tokens, as `ImagePlan.length`.
        processing: as `ImageForm.processing`.
        before, after: as in `ImagePlan`.
    """

    side: int
    length: int
    processing: ImageProcessing = field(default_factory=ImageProcessing)
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    most_tiles: int = 1
    constant: bool = True

    def plan(self, size: Size | None = None, *, max_tiles: int | None = None) -> ImagePlan:
        """As `ImageForm.plan`; the same for all."""
        return ImagePlan(length=self.length, canvas=(self.side, self.side), before=self.before, after=self.after)
