"""Sizes of MiniGPT-4."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from sat_models.config.base import require_divides, require_positive
from sat_models.config.language import LLaMAConfig, VisionLanguageConfig
from sat_models.config.qformer import QFormerConfig, check_qformer
from sat_models.config.sequence import PLAIN_FORM, SequenceForm
from sat_models.config.towers import EVAViTConfig
from sat_models.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MiniGPT4Config(LLaMAConfig, VisionLanguageConfig):
    """MiniGPT-4: a plain LLaMA that reads BLIP-2's features.

    Attributes:
        qformer_args: the Q-Former (the Vicuna models); None: neighbouring patches are joined instead.
        joined_patches: how many neighbouring patches make one token where there is no Q-Former.
    """

    model_class: str = "MiniGPT4Model"
    eva_args: EVAViTConfig
    qformer_args: QFormerConfig | None = None
    joined_patches: int = 4

    TOWER: ClassVar[type[EVAViTConfig]] = EVAViTConfig
    DEFAULT_VERSION: ClassVar[str] = "minigpt4"

    def __post_init__(self) -> None:
        if isinstance(self.qformer_args, dict):
            object.__setattr__(self, "qformer_args", QFormerConfig.from_dict(self.qformer_args))
        require_positive(self, "joined_patches")
        super().__post_init__()
        if self.qformer_args is not None:
            check_qformer(self, self.qformer_args)

    def _check_image_length(self) -> None:
        if self.qformer_args is not None:
            made, how = self.qformer_args.vocab_size, "the Q-Former has that many queries"
        else:
            patches = self.eva_args.num_patches
            require_divides("patches of a picture", patches, self.joined_patches, "joined_patches")
            made, how = patches // self.joined_patches, f"{patches} patches, {self.joined_patches} joined to a token"
        if self.image_length != made:
            raise ConfigError(f"image_length is {self.image_length}, but a picture makes {made} tokens ({how})")

    @property
    def feature_width(self) -> int:
        """Width of what the projector reads."""
        if self.qformer_args is not None:
            return self.qformer_args.hidden_size
        return self.eva_args.hidden_size * self.joined_patches

    @property
    def sequence_form(self) -> SequenceForm:
        """A plain sequence; MiniGPT-v2 writes boxes in hundreds."""
        return dataclasses.replace(PLAIN_FORM, boxes="hundred")

    def to_dict(self) -> dict[str, Any]:
        """As the content of a `model_config.json`."""
        own = {} if self.qformer_args is None else {"qformer_args": self.qformer_args.to_dict()}
        return {**super().to_dict(), **own}

    def _split_sizes(self) -> dict[str, int]:
        own = {"qformer_args.num_attention_heads": self.qformer_args.num_attention_heads} if self.qformer_args else {}
        return {**super()._split_sizes(), **own}
