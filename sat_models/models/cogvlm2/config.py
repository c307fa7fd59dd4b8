"""Sizes of CogVLM2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sat_models.config import COGVLM_FORM, SequenceForm, VisionLanguageConfig
from sat_models.errors import ConfigError
from sat_models.models.cogvlm.config import CogVLMConfig

STRIDE = 2
"""Patches, on either side, of which the convolution behind the tower makes one token."""


def tokens_of(image_size: int, patch_size: int) -> int:
    """Tokens of an image of so many pixels on either side."""
    return (image_size // patch_size // STRIDE) ** 2


@dataclass(frozen=True, kw_only=True)
class ConvolvedConfig(VisionLanguageConfig):
    """Of a model with a convolution behind its tower."""

    def _check_image_length(self) -> None:
        size, patch = self.eva_args.image_size[0], self.eva_args.patch_size
        side = size // patch
        if side % STRIDE or self.image_length != tokens_of(size, patch):
            raise ConfigError(
                f"image_length is {self.image_length}, but {STRIDE} x {STRIDE} of the tower's {side} x {side} patches "
                f"make a token each, which is {side / STRIDE:g} x {side / STRIDE:g}"
            )


@dataclass(frozen=True, kw_only=True)
class CogVLM2Config(CogVLMConfig, ConvolvedConfig):
    """CogVLM on Llama 3: grouped keys, biases in the visual expert, a convolution behind the tower."""

    model_class: str = "CogVLM2Model"
    rope_theta: float = 500000.0
    vision_qkv_bias: bool = True
    bos_token_id: int = 128000
    eos_token_id: int | tuple[int, ...] = 128001
    pad_token_id: int = 128002
    tokenizer_type: str = "THUDM/cogvlm2-llama3-chat-19B"

    TOKENIZER_FILES: ClassVar[tuple[str, ...]] = ("tokenizer.json",)
    RELEASED_TOKENIZER: ClassVar[tuple[int, str]] = (128256, "THUDM/cogvlm2-llama3-chat-19B")
    DEFAULT_VERSION: ClassVar[str] = "chat_old"

    @property
    def sequence_form(self) -> SequenceForm:
        """CogVLM's; what stands in the slots of an image is the filler token."""
        return COGVLM_FORM.with_slot(self.pad_token_id)
