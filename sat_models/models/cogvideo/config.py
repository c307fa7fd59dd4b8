"""Sizes of CogVideo's two stages.

Source: github.com/THUDM/CogVideo at 5f914b7 (branch `CogVideo`); CogVideo, arXiv 2205.15868.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sat_models.config.base import require_divides, require_positive
from sat_models.config.image_tokens import ImageTokenConfig
from sat_models.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CogVideoConfig(ImageTokenConfig):
    """Frames in tokens behind a text.

    Attributes:
        layout: where the text, the first frame and the last one end at most; the originals write it as a text with
            commas.
        additional_seqlen: positions in the mixin's table.
        window_size: side of the windows of the second attention in stage 2. In stage 1 it sees everything before it,
            whatever stands here: the original's loop, too, reads no window there.
        cogvideo_stage: 1 makes frames one after the other, 2 makes frames between given ones.
        frame_start: the position of the first frame's first token.
    """

    model_class: str = "CogVideoModel"
    layout: tuple[int, ...] = (64, 464, 2064)
    additional_seqlen: int = 2000
    window_size: int = -1
    cogvideo_stage: int = 1
    frame_start: int = 512

    TASK: ClassVar[str] = "film"

    def __post_init__(self) -> None:
        layout = self.layout.split(",") if isinstance(self.layout, str) else self.layout
        try:
            object.__setattr__(self, "layout", tuple(int(end) for end in layout))
        except ValueError as error:
            raise ConfigError(f"layout is {self.layout!r:.60}; it must hold three ends of parts") from error
        super().__post_init__()
        require_positive(self, "additional_seqlen", "frame_start")
        if len(self.layout) != 3 or not 0 < self.layout[0] < self.layout[1] <= self.layout[2]:
            raise ConfigError(f"layout is {list(self.layout)}; it must hold three ends of parts, rising")
        if self.cogvideo_stage not in (1, 2):
            raise ConfigError(f"cogvideo_stage is {self.cogvideo_stage!r}; it is 1 or 2")
        if math.isqrt(self.frame_size) ** 2 != self.frame_size:
            raise ConfigError(f"a frame of layout {list(self.layout)} has {self.frame_size} tokens, which is no square")
        if self.window_size > 0:
            require_divides("the side of a frame", self.frame_side, self.window_size, "window_size")
            require_divides("window_size", self.window_size, 2, "windows are shifted by half")
        elif self.window_size != -1:
            raise ConfigError(f"window_size is {self.window_size!r}; it is a number of cells, or -1 for none")

    @property
    def usual_size(self) -> tuple[int, int]:
        """Width and height of what it makes with its companions."""
        return (self.sides(self.frame_size)[0],) * 2

    @property
    def frame_size(self) -> int:
        """Tokens of a frame."""
        return self.layout[1] - self.layout[0]

    @property
    def frame_side(self) -> int:
        """Cells on a side of a frame."""
        return math.isqrt(self.frame_size)


_MIX = "mixins.attention_plus.attn_distribution.0"


def config_of_weights(shapes: Mapping[str, Sequence[int]], told: Mapping[str, Any]) -> dict[str, Any] | None:
    """The `model_config.json` of weights of CogVideo, whose files name no class; None for another family's."""
    if "model_class" in told or _MIX not in shapes:
        return None
    return {**told, "model_class": "CogVideoModel"}
