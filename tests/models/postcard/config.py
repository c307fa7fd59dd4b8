"""Its sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sat_models.config import PLAIN_FORM, CLIPTowerConfig, LLaMAConfig, SequenceForm, VisionLanguageConfig


@dataclass(frozen=True, kw_only=True)
class PostcardConfig(LLaMAConfig, VisionLanguageConfig):
    """A LLaMA that reads patches of pixels with a stamp on each.

    Attributes:
        stamp_value: every stamp counts this much.
    """

    model_class: str = "PostcardModel"
    eva_args: CLIPTowerConfig
    stamp_value: float = 1.0

    TOWER: ClassVar[type[CLIPTowerConfig]] = CLIPTowerConfig
    TOKENIZER_FILES: ClassVar[tuple[str, ...]] = ("postcard.model",)
    DEFAULT_VERSION: ClassVar[str] = "postcard"

    @property
    def sequence_form(self) -> SequenceForm:
        """A plain sequence."""
        return PLAIN_FORM

    def to_dict(self) -> dict[str, Any]:
        """As the content of a `model_config.json`."""
        return {**super().to_dict(), "stamp_value": self.stamp_value}
