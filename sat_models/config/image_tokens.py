"""Sizes of models that write images as tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from sat_models.config.base import require_divides, require_positive
from sat_models.config.model import ModelConfig
from sat_models.errors import ConfigError

RELEASED_CODES = 20000
"""Image codes of icetk, which stand before all words."""
CODE_SIDE = 8
"""Pixels on a side of a code."""
ENLARGED = 3
"""As many codes on a side as super-resolution makes of one."""


@dataclass(frozen=True, kw_only=True)
class ImageTokenConfig(ModelConfig):
    """A transformer over text and image tokens.

    Attributes:
        max_sequence_length: positions in the transformer's own table.
        image_codes: number of image codes, the first words of the vocabulary; default: icetk's, or all words of a
            smaller vocabulary.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int = 150010
    max_sequence_length: int = 1024
    layernorm_order: str = "sandwich"
    image_codes: int = 0

    TASK: ClassVar[str] = "drawing"
    PROMPT_LANGUAGES: ClassVar[tuple[str, ...]] = ("zh",)

    def __post_init__(self) -> None:
        if not self.image_codes:
            object.__setattr__(self, "image_codes", min(RELEASED_CODES, self.vocab_size))
        sizes = ("num_layers", "hidden_size", "num_attention_heads", "vocab_size", "max_sequence_length", "image_codes")
        require_positive(self, *sizes)
        require_divides("hidden_size", self.hidden_size, self.num_attention_heads, "num_attention_heads")
        if self.layernorm_order != "sandwich":
            raise ConfigError(f"layernorm_order is {self.layernorm_order!r}; these models have 'sandwich'")
        if self.image_codes > self.vocab_size:
            raise ConfigError(f"image_codes = {self.image_codes} is more than vocab_size = {self.vocab_size}")

    def sides(self, cells: int) -> tuple[int, int]:
        """Pixels on a side of an image of so many codes, enlarged and as it is."""
        small = math.isqrt(cells) * CODE_SIDE
        return ENLARGED * small, small

    def _split_sizes(self) -> dict[str, int]:
        return {"num_attention_heads": self.num_attention_heads, "vocab_size": self.vocab_size}
