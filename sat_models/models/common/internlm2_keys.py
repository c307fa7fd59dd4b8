"""InternLM2 between SAT's names and its own, for the models that are built on one.

A LLaMA in other words: `wqkv` holds queries, keys and values group by group, `w1` is the gate, `w3` goes up, `w2` down.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_models.config import LLaMAConfig
from sat_models.errors import ConfigError
from sat_models.models.common.hf_form import Packed, Row
from sat_models.models.common.llama_keys import llama_sizes, llama_sizes_to_hf

LINEARS: dict[str, str] = {
    "attention.query_key_value": "attention.wqkv",
    "attention.dense": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.dense_h_to_4h": "feed_forward.w3",
    "mlp.dense_4h_to_h": "feed_forward.w2",
}
"""The linears of a layer: SAT's name of each, and the original's. SAT keeps the gate in the mixin "mlp"."""


def internlm2_rows(model: str, head: str) -> dict[str, Row]:
    """Rows of a key table for the language model, whose names start with `model` and whose head is `head`."""
    sat, hf = "transformer.layers.{i}", f"{model}.layers.{{i}}"
    names = {ours: f"{hf}.{theirs}.weight" for ours, theirs in LINEARS.items()}
    gate, mixed = names.pop("mlp.gate_proj"), names.pop("attention.query_key_value")
    return {
        "transformer.word_embeddings.weight": f"{model}.tok_embeddings.weight",
        "transformer.final_layernorm.weight": f"{model}.norm.weight",
        "mixins.lm.lm_head.weight": f"{head}.weight",
        f"{sat}.input_layernorm.weight": f"{hf}.attention_norm.weight",
        f"{sat}.post_attention_layernorm.weight": f"{hf}.ffn_norm.weight",
        f"{sat}.attention.query_key_value.weight": Packed(mixed),
        "mixins.mlp.gate_proj.{i}.weight": gate,
        **{f"{sat}.{ours}.weight": theirs for ours, theirs in names.items()},
    }


def internlm2_sizes(data: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of an `InternLM2Config` under SAT's names.

    Its dynamic rotary scaling changes nothing up to `max_position_embeddings`, which is the model's context here.

    Raises:
        ConfigError: for forms of it that the zoo does not have.
    """
    if data.get("bias", False):
        raise ConfigError("bias = True is not supported in an InternLM2's config; the released ones have no biases")
    scaling = data.get("rope_scaling") or {}
    plain = {**data, "rope_scaling": None} if scaling.get("type") == "dynamic" else data
    return llama_sizes(plain)


def internlm2_sizes_to_hf(config: LLaMAConfig) -> dict[str, Any]:
    """The inverse of `internlm2_sizes`, as `InternLM2Config` has it."""
    return {**llama_sizes_to_hf(config), "model_type": "internlm2", "bias": False, "rope_scaling": None}
