"""Sizes of ChatGLM-6B and VisualGLM-6B."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from sat_models.config.language import LanguageConfig, VisionLanguageConfig
from sat_models.config.qformer import QFormerConfig, check_qformer
from sat_models.config.sequence import SequenceForm
from sat_models.config.towers import EVAViTConfig
from sat_models.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ChatGLMConfig(LanguageConfig):
    """A ChatGLM-6B-shaped language model: biases, scaled residuals after the norms, 2-D rotary, prefix attention.

    Attributes:
        bos_token_id: `<sop>`, after which the answer stands.
        eos_token_id: `<eop>`.
        mask_token_id, gmask_token_id: where the answer belongs; `[gMASK]` is used for chat.
    """

    model_class: str = "ChatGLMModel"
    use_bias: bool = True
    layernorm_order: str = "post"
    bos_token_id: int = 130004
    eos_token_id: int = 130005
    pad_token_id: int = 3
    mask_token_id: int = 130000
    gmask_token_id: int = 130001
    tokenizer_type: str = "THUDM/chatglm-6b"

    _REQUIRED_VALUES: ClassVar[dict[str, Any]] = {"use_bias": True, "layernorm_order": "post"}
    ROTARY_DIVISOR: ClassVar[int] = 4
    TOKENIZER_FILES: ClassVar[tuple[str, ...]] = ("ice_text.model", "tokenizer.model")
    RELEASED_TOKENIZER: ClassVar[tuple[int, str]] = (130528, "THUDM/chatglm-6b")
    DEFAULT_VERSION: ClassVar[str] = "glm_zh"

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("bos_token_id", "pad_token_id", "mask_token_id", "gmask_token_id")
        tokens = [(name, getattr(self, name)) for name in names] + [("eos_token_id", end) for end in self.eos_token_ids]
        for name, token in tokens:
            if not 0 <= token < self.vocab_size:
                raise ConfigError(f"{name} = {token} is outside of the vocabulary of {self.vocab_size} tokens")

    @property
    def residual_scale(self) -> float:
        """α of the residual connections, sqrt(2 × layers)."""
        return (2 * self.num_layers) ** 0.5

    @property
    def sequence_form(self) -> SequenceForm:
        """`text, image, text, [gMASK] <sop>`, seen by all of the answer and by each other."""
        return SequenceForm(
            begin=False, markers=0, experts=False, shared_position=False, slot_id=self.pad_token_id,
            suffix=(self.gmask_token_id, self.bos_token_id), prefix_attention=True,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VisualGLMConfig(ChatGLMConfig, VisionLanguageConfig):
    """VisualGLM-6B: ChatGLM-6B with BLIP-2's EVA ViT-g (`eva_args`) and Q-Former (`qformer_args`)."""

    model_class: str = "VisualGLMModel"
    eva_args: EVAViTConfig
    qformer_args: QFormerConfig

    TOWER: ClassVar[type[EVAViTConfig]] = EVAViTConfig

    def __post_init__(self) -> None:
        if isinstance(self.qformer_args, dict):
            object.__setattr__(self, "qformer_args", QFormerConfig.from_dict(self.qformer_args))
        super().__post_init__()
        check_qformer(self, self.qformer_args)

    def _check_image_length(self) -> None:
        if self.image_length != self.qformer_args.vocab_size:
            raise ConfigError(
                f"image_length is {self.image_length}, but the Q-Former has {self.qformer_args.vocab_size} queries"
            )

    def to_dict(self) -> dict[str, Any]:
        """As the content of a `model_config.json`."""
        return {**super().to_dict(), "qformer_args": self.qformer_args.to_dict()}

    def _split_sizes(self) -> dict[str, int]:
        return {**super()._split_sizes(), "qformer_args.num_attention_heads": self.qformer_args.num_attention_heads}
