"""How CogView2 writes images: the styles of its recipe, and what a caller may choose.

Source: github.com/THUDM/CogView2 at d92dbad, `cogview2_text2image.py`. Some numbers of its recipe are read by nobody
there (temperatures and limits of the iterative step, the first temperature of the direct one); they are not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from sat_models.errors import InputError, UnknownNameError
from sat_models.sampling.options import check_seed

DEFAULT_STYLE = "mainbody"
MOST_TOKENS = 110
"""Of a text with its style and `<start_of_image>`."""


@dataclass(frozen=True, kw_only=True)
class WritingStyle:
    """A row of the recipe.

    Attributes:
        words: that stand behind the prompt.
        temperature: of the small image.
        best, cluster_temperature: of direct super-resolution; see `CodeChoice`.
    """

    words: str = ""
    temperature: float = 1.15
    best: int = 100
    cluster_temperature: float = 0.89


_PLAIN = {"best": 5, "cluster_temperature": 0.4, "temperature": 1.1}
STYLES = {
    "none": WritingStyle(),
    "mainbody": WritingStyle(words=" 高清摄影 隔绝"),
    "photo": WritingStyle(words=" 高清摄影"),
    "flat": WritingStyle(words=" 平面风格", **_PLAIN),
    "comics": WritingStyle(words=" 漫画 隔绝", **_PLAIN),
    "oil": WritingStyle(words=" 油画风格"),
    "sketch": WritingStyle(words=" 素描风格", temperature=1.1),
    "isometric": WritingStyle(words=" 等距矢量图", temperature=1.1),
    "chinese": WritingStyle(words=" 水墨国画", temperature=1.12),
    "watercolor": WritingStyle(words=" 水彩画风格"),
}


class WritingKeywords(TypedDict, total=False):
    """The keyword arguments of `draw` and `steps` of a model that writes codes.

    size: width and height in pixels: those of all three models (default), or of the first one alone.
    style: a name of `STYLES`; None (default): "mainbody", as in the original.
    seed: the same seed gives the same image; that of a second prompt is one more, and so on; None (default) draws one.
    """

    size: tuple[int, int] | None
    style: str | None
    seed: int | None


@dataclass(frozen=True, kw_only=True)
class WritingOptions:
    """See `WritingKeywords`; nothing is left open. `steps`, `guidance` and `sampler` are what such a model lacks.

    Raises:
        InputError: a seed that cannot be.
        UnknownNameError: no such style.
    """

    size: tuple[int, int]
    style: str
    seed: int
    steps: None = None
    guidance: None = None
    sampler: None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.style not in STYLES:
            raise UnknownNameError("style", str(self.style), STYLES)


def check_code_size(size: object, allowed: tuple[int, ...]) -> tuple[int, int]:
    """Width and height, both a side of `allowed`; None is the first. Raises InputError."""
    if size is None:
        return allowed[0], allowed[0]
    found = tuple(size) if isinstance(size, tuple | list) else ()
    if len(found) != 2 or found[0] != found[1] or found[0] not in allowed:
        names = " or ".join(f"{side}x{side}" for side in allowed)
        raise InputError(f"the size is {size!r:.40}; this model makes {names}")
    return found
