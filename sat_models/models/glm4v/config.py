"""Sizes of GLM-4V-9B."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from sat_models.config import COGVLM_FORM, LLaMAConfig, SequenceForm
from sat_models.config.base import require_number_above
from sat_models.models.cogvlm2.config import ConvolvedConfig


@dataclass(frozen=True, kw_only=True)
class GLM4VConfig(LLaMAConfig, ConvolvedConfig):
    """GLM-4-9B, a LLaMA with biases of queries, keys and values and half of each head turned by neighbours, which reads
    what a tower, a convolution and a projector make of an image.

    Attributes:
        scaling_factor: what all that stands for an image is divided by, its begin and end vectors included.
        boi_token_id, eoi_token_id: what stands in the places of these two.
    """

    model_class: str = "GLM4VModel"
    qkv_bias: bool = True
    rotary_interleaved: bool = True
    eos_token_id: int | tuple[int, ...] = (151329, 151336, 151338)
    pad_token_id: int = 151329
    boi_token_id: int = 151339
    eoi_token_id: int = 151340
    tokenizer_type: str = "THUDM/glm-4v-9b"
    scaling_factor: float = 8

    RELEASED_TOKENIZER: ClassVar[tuple[int, str]] = (151552, "THUDM/glm-4v-9b")
    DEFAULT_VERSION: ClassVar[str] = "glm4v"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number_above(self, 0, "scaling_factor")

    @property
    def sequence_form(self) -> SequenceForm:
        """CogVLM's without experts; its prompts bring what stands in front of everything."""
        return replace(
            COGVLM_FORM, begin=False, experts=False, slot_id=self.pad_token_id,
            marker_ids=(self.boi_token_id, self.eoi_token_id),
        )  # fmt: skip
