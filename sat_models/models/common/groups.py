"""Named groups of a model's parameters: what they are made of, and those that most families have."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that train together.

    Attributes:
        patterns: shell patterns over whole parameter names. LoRA matrices belong to the group of what they adapt.
        vision: a batch without images gives it no gradient.
        adapted: `--trainable all` with a rank puts LoRA on its linears.
    """

    patterns: tuple[str, ...]
    vision: bool = False
    adapted: bool = True


_LAYER = "transformer.layers.*"

TRANSFORMER_GROUPS: dict[str, ParameterGroup] = {
    "language": ParameterGroup(
        (
            f"{_LAYER}.attention.*",
            f"{_LAYER}.mlp.*",
            f"{_LAYER}.input_layernorm.*",
            f"{_LAYER}.post_attention_layernorm.*",
            "transformer.final_layernorm.*",
        )
    ),
    "embeddings": ParameterGroup(("transformer.word_embeddings.*",), adapted=False),
}
"""Of SAT's transformer."""

LLAMA_GROUPS: dict[str, ParameterGroup] = {
    **TRANSFORMER_GROUPS,
    "language": ParameterGroup((*TRANSFORMER_GROUPS["language"].patterns, "mixins.mlp.gate_proj.*")),
    "head": ParameterGroup(("mixins.lm.*",), adapted=False),
}
"""Of a LLaMA."""

TOWER = ParameterGroup(("mixins.eva.vit_model.transformer.*", "mixins.eva.vit_model.mixins.*"), vision=True)
"""A tower of SAT's layers in "eva"."""
PROJECTOR = ParameterGroup(("mixins.eva.linear_proj.*",), vision=True)
"""Vision width to language width in "eva"."""

_NORMS = ("third_layernorm", "fourth_layernorm")  # of SAT's "sandwich" order

IMAGE_TOKEN_GROUPS: dict[str, ParameterGroup] = {
    "language": ParameterGroup(
        (
            *TRANSFORMER_GROUPS["language"].patterns,
            *(f"{_LAYER}.{name}.*" for name in _NORMS),
            "mixins.attention_plus.*",
        )
    ),
    "embeddings": ParameterGroup(
        (
            *TRANSFORMER_GROUPS["embeddings"].patterns,
            "transformer.position_embeddings.*",
            "mixins.extra_position_embedding.*",
        ),
        adapted=False,
    ),
}
"""Of a model that writes images as tokens."""
