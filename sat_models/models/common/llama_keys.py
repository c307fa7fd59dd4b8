"""LLaMA between SAT's names and those of transformers' `LlamaForCausalLM`, for the models that are built on one.

Legend of names: SAT holds q, k and v as one weight, transformers apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_models.config import LLaMAConfig
from sat_models.errors import ConfigError
from sat_models.models.common.hf_form import Joined, Row

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


def llama_rows(model: str, head: str, *, qkv_bias: bool = False) -> dict[str, Row]:
    """Rows of a key table for the language model, whose names start with `model` and whose head is `head`.

    Args:
        qkv_bias: whether q, k and v have biases.
    """
    sat, hf = "transformer.layers.{i}", f"{model}.layers.{{i}}"
    joined = {
        f"{sat}.attention.query_key_value.{part}": Joined(
            tuple(f"{hf}.self_attn.{x}_proj.{part}" for x in "qkv"), by_heads=True
        )
        for part in ("weight", *(["bias"] if qkv_bias else []))
    }
    return {
        "transformer.word_embeddings.weight": f"{model}.embed_tokens.weight",
        "transformer.final_layernorm.weight": f"{model}.norm.weight",
        "mixins.lm.lm_head.weight": f"{head}.weight",
        f"{sat}.input_layernorm.weight": f"{hf}.input_layernorm.weight",
        f"{sat}.post_attention_layernorm.weight": f"{hf}.post_attention_layernorm.weight",
        **joined,
        f"{sat}.attention.dense.weight": f"{hf}.self_attn.o_proj.weight",
        f"{sat}.mlp.dense_h_to_4h.weight": f"{hf}.mlp.up_proj.weight",
        f"{sat}.mlp.dense_4h_to_h.weight": f"{hf}.mlp.down_proj.weight",
        "mixins.mlp.gate_proj.{i}.weight": f"{hf}.mlp.gate_proj.weight",
    }


def llama_sizes(data: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a `LlamaConfig` under SAT's names. Raises ConfigError for forms of LLaMA that the zoo does not have."""
    sizes = {sat: data.get(hf, default) for sat, (hf, default) in _SIZES.items()}
    refuse_variants(data)
    ids = {name: data.get(name) if isinstance(data.get(name), int) else default for name, default in _IDS.items()}
    if isinstance(data.get("eos_token_id"), list):
        ids["eos_token_id"] = data["eos_token_id"]
    pad = data.get("pad_token_id")
    pad = pad if isinstance(pad, int) and pad >= 0 else 0
    return {**sizes, **_heads_to_sat(data), **ids, "pad_token_id": pad}


def refuse_variants(data: Mapping[str, Any], *, heads: int | None = None) -> None:
    """Raises ConfigError for values of a `config.json` by which LLaMA computes otherwise than the zoo's does.

    Args:
        heads: of queries, for a form that knows neither fewer key/value heads nor another rotary base.
    """
    rope = _rope(data)
    first = {
        "num_key_value_heads": (data.get("num_key_value_heads") or heads, heads),
        "rope_theta": (_theta(data), 1e4),
    }
    given = {
        **({} if heads is None else first),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "hidden_act": (data.get("hidden_act", "silu"), "silu"),
        "attention_bias": (data.get("attention_bias", False), False),
        "tie_word_embeddings": (data.get("tie_word_embeddings", False), False),
    }
    for name, (value, allowed) in given.items():
        if value != allowed:
            raise ConfigError(f"{name} = {value!r} is not supported in the language model's config; {allowed!r} is")


def _rope(data: Mapping[str, Any]) -> Mapping[str, Any]:
    return data.get("rope_parameters") or data.get("rope_scaling") or {}


def _theta(data: Mapping[str, Any]) -> float:
    return _rope(data).get("rope_theta", data.get("rope_theta", 10000.0))


def _heads_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of heads that say something; what is as in the first LLaMA is left out, as in our own files."""
    heads = data.get("num_attention_heads", _SIZES["num_attention_heads"][1])
    width = data.get("hidden_size", _SIZES["hidden_size"][1])
    shared, own, theta = data.get("num_key_value_heads") or heads, data.get("head_dim"), _theta(data)
    found = {} if shared == heads else {"num_kv_heads": shared}
    if own is not None and own * heads != width:
        found["head_dim"] = own
    return found if theta == 10000.0 else {**found, "rope_theta": theta}


def _heads_to_hf(config: LLaMAConfig, qkv_bias: bool) -> dict[str, Any]:
    """The inverse. Raises ConfigError for what transformers' LLaMA does not have."""
    heads = config.heads
    if config.qkv_bias != qkv_bias or heads.interleaved or heads.rotary_dim != heads.head_dim:
        raise ConfigError(
            "qkv_bias, rotary_interleaved and rotary_dim have no form in transformers' LLaMA; without them it can be "
            "written"
        )
    own = {} if heads.context_size == config.hidden_size else {"head_dim": heads.head_dim}
    theta = {} if heads.rope_theta == 10000.0 else {"rope_theta": heads.rope_theta}
    return {"num_key_value_heads": heads.num_kv_heads, **own, **theta}


def llama_sizes_to_hf(config: LLaMAConfig, *, qkv_bias: bool = False) -> dict[str, Any]:
    """The inverse of `llama_sizes`, as transformers' `LlamaConfig` has it.

    Args:
        qkv_bias: the form is of models that have biases of q, k and v (Qwen2).
    """
    return {
        "model_type": "llama",
        **{hf: getattr(config, sat) for sat, (hf, _) in _SIZES.items()},
        **{name: getattr(config, name) for name in (*_IDS, "pad_token_id")},
        **_heads_to_hf(config, qkv_bias),
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    }
