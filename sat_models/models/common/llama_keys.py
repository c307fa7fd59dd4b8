"""LLaMA between SAT's names and those of transformers' `LlamaForCausalLM`, for the models that are built on one.

Legend of names: SAT holds q, k and v as one weight, transformers apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_models.config import LLaMAConfig
from sat_models.errors import ConfigError
from sat_models.models.common.hf_family import Joined, Lifted

ROTARY_TABLE = "mixins.rotary.rotary_emb.inv_freq"
_SIZES = {
    "num_layers": ("num_hidden_layers", 32),
    "hidden_size": ("hidden_size", 4096),
    "num_attention_heads": ("num_attention_heads", 32),
    "inner_hidden_size": ("intermediate_size", 11008),
    "vocab_size": ("vocab_size", 32000),
    "max_sequence_length": ("max_position_embeddings", 2048),
    "layernorm_epsilon": ("rms_norm_eps", 1e-6),
}
"""Transformers leaves out of a nested config what is the default of its class."""
_IDS = {"bos_token_id": 1, "eos_token_id": 2}


def llama_rows(model: str, head: str) -> dict[str, str | Joined | Lifted]:
    """Rows of a key table for the language model, whose names start with `model` and whose head is `head`."""
    sat, hf = "transformer.layers.{i}", f"{model}.layers.{{i}}"
    return {
        "transformer.word_embeddings.weight": f"{model}.embed_tokens.weight",
        "transformer.final_layernorm.weight": f"{model}.norm.weight",
        "mixins.lm.lm_head.weight": f"{head}.weight",
        f"{sat}.input_layernorm.weight": f"{hf}.input_layernorm.weight",
        f"{sat}.post_attention_layernorm.weight": f"{hf}.post_attention_layernorm.weight",
        f"{sat}.attention.query_key_value.weight": Joined(tuple(f"{hf}.self_attn.{x}_proj.weight" for x in "qkv")),
        f"{sat}.attention.dense.weight": f"{hf}.self_attn.o_proj.weight",
        f"{sat}.mlp.dense_h_to_4h.weight": f"{hf}.mlp.up_proj.weight",
        f"{sat}.mlp.dense_4h_to_h.weight": f"{hf}.mlp.down_proj.weight",
        "mixins.mlp.gate_proj.{i}.weight": f"{hf}.mlp.gate_proj.weight",
    }


def llama_sizes(data: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a `LlamaConfig` under SAT's names. Raises ConfigError for forms of LLaMA that the zoo does not have."""
    sizes = {sat: data.get(hf, default) for sat, (hf, default) in _SIZES.items()}
    refuse_variants(data, heads=sizes["num_attention_heads"])
    ids = {name: data.get(name) if isinstance(data.get(name), int) else default for name, default in _IDS.items()}
    if isinstance(data.get("eos_token_id"), list):
        ids["eos_token_id"] = data["eos_token_id"]
    pad = data.get("pad_token_id")
    return {**sizes, **ids, "pad_token_id": pad if isinstance(pad, int) and pad >= 0 else 0}


def refuse_variants(data: Mapping[str, Any], *, heads: int) -> None:
    """Raises ConfigError for values of a `config.json` by which LLaMA computes otherwise than the zoo's does."""
    rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
    theta = rope.get("rope_theta", data.get("rope_theta", 10000.0))
    given = {
        "num_key_value_heads": (data.get("num_key_value_heads") or heads, heads),
        "rope_theta": (theta, 10000.0),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "hidden_act": (data.get("hidden_act", "silu"), "silu"),
        "attention_bias": (data.get("attention_bias", False), False),
        "tie_word_embeddings": (data.get("tie_word_embeddings", False), False),
    }
    for name, (value, allowed) in given.items():
        if value != allowed:
            raise ConfigError(f"{name} = {value!r} is not supported in the language model's config; {allowed!r} is")


def llama_sizes_to_hf(config: LLaMAConfig) -> dict[str, Any]:
    """The inverse of `llama_sizes`, as transformers' `LlamaConfig` has it."""
    return {
        "model_type": "llama",
        **{hf: getattr(config, sat) for sat, (hf, _) in _SIZES.items()},
        **{name: getattr(config, name) for name in (*_IDS, "pad_token_id")},
        "num_key_value_heads": config.num_attention_heads,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
