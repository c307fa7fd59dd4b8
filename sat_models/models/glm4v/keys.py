"""GLM-4V between SAT's names and those of its release (THUDM/glm-4v-9b): the tower's are CogVLM2's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_models.errors import ConfigError
from sat_models.models.cogvlm.keys import tower_to_hf, tower_to_sat
from sat_models.models.cogvlm2.config import tokens_of
from sat_models.models.cogvlm2.keys import KEYS as COGVLM2_KEYS
from sat_models.models.common.hf_form import HFForm, KeyTable
from sat_models.models.common.key_rows import Stacked
from sat_models.models.common.llama_keys import ROTARY_TABLE
from sat_models.models.glm4v.config import GLM4VConfig

_SAT, _HF = "transformer.layers.{i}", "transformer.encoder.layers.{i}"
_IMAGE = {
    sat: hf.replace("model.vision.", "transformer.vision.", 1)
    for sat, hf in COGVLM2_KEYS.rows.items()
    if sat.startswith("mixins.eva.")
}

KEYS = KeyTable({
    "transformer.word_embeddings.weight": "transformer.embedding.word_embeddings.weight",
    "transformer.final_layernorm.weight": "transformer.encoder.final_layernorm.weight",
    "mixins.lm.lm_head.weight": "transformer.output_layer.weight",
    ROTARY_TABLE: "transformer.rotary_pos_emb.inv_freq",
    f"{_SAT}.input_layernorm.weight": f"{_HF}.input_layernorm.weight",
    f"{_SAT}.post_attention_layernorm.weight": f"{_HF}.post_attention_layernorm.weight",
    f"{_SAT}.attention.query_key_value.weight": f"{_HF}.self_attention.query_key_value.weight",
    f"{_SAT}.attention.query_key_value.bias": f"{_HF}.self_attention.query_key_value.bias",
    f"{_SAT}.attention.dense.weight": f"{_HF}.self_attention.dense.weight",
    "mixins.mlp.gate_proj.{i}.weight": Stacked(f"{_HF}.mlp.dense_h_to_4h.weight", 0, 2),
    f"{_SAT}.mlp.dense_h_to_4h.weight": Stacked(f"{_HF}.mlp.dense_h_to_4h.weight", 1, 2),
    f"{_SAT}.mlp.dense_4h_to_h.weight": f"{_HF}.mlp.dense_4h_to_h.weight",
    **_IMAGE,
})  # fmt: skip

_SIZES = {
    "num_layers": "num_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "head_dim": "kv_channels",
    "inner_hidden_size": "ffn_hidden_size",
    "vocab_size": "padded_vocab_size",
    "max_sequence_length": "seq_length",
    "layernorm_epsilon": "layernorm_epsilon",
}
_IDS = ("eos_token_id", "pad_token_id", "boi_token_id", "eoi_token_id")
_FIXED = {
    "add_bias_linear": False, "add_qkv_bias": True, "apply_residual_connection_post_layernorm": False,
    "multi_query_attention": True, "original_rope": True, "post_layer_norm": True, "rmsnorm": True,
    "tie_word_embeddings": False,
}  # fmt: skip
"""Switches of the release's code that its models do not use."""
_MODEL = "modeling_chatglm.ChatGLMForConditionalGeneration"
_AUTO_MAP = {"AutoConfig": "configuration_chatglm.ChatGLMConfig", "AutoModel": _MODEL, "AutoModelForCausalLM": _MODEL}
"""Where the release's own code is found, if it lies beside the weights."""
_BASE = 10000
"""Of the rotary frequencies, times `rope_ratio`."""


def _sizes_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    for name, allowed in _FIXED.items():
        if data.get(name, allowed) != allowed:
            raise ConfigError(f"{name} is {data[name]!r} in config.json; GLM-4V has {allowed!r}, and so has the zoo")
    vision = data["vision_config"]
    return {
        **{sat: data[hf] for sat, hf in _SIZES.items()},
        **{name: data[name] for name in _IDS if data.get(name) is not None},
        "num_kv_heads": data["multi_query_group_num"],
        "rotary_dim": data["kv_channels"] // 2,
        "rope_theta": _BASE * data.get("rope_ratio", 1),
        "scaling_factor": vision["scaling_factor"],
        "image_length": tokens_of(vision["image_size"], vision["patch_size"]),
        "eva_args": tower_to_sat(vision),
    }


def _sizes_to_hf(config: GLM4VConfig) -> dict[str, Any]:
    heads = config.heads
    if not config.qkv_bias or not heads.interleaved or heads.rotary_dim * 2 != heads.head_dim:
        raise ConfigError(
            "GLM-4V's own layout has no key for other heads than its own: qkv_bias and rotary_interleaved true, "
            "rotary_dim half of head_dim"
        )
    ratio = heads.rope_theta / _BASE
    return {
        "model_type": "chatglm",
        "auto_map": _AUTO_MAP,
        **{hf: getattr(config, sat) for sat, hf in _SIZES.items()},
        **{name: getattr(config, name) for name in _IDS},
        **_FIXED,
        "kv_channels": heads.head_dim,
        "multi_query_group_num": heads.num_kv_heads,
        "num_hidden_layers": config.num_layers,
        "rope_ratio": int(ratio) if ratio == int(ratio) else ratio,
        "vocab_size": config.vocab_size,
        "vision_config": {**tower_to_hf(config.eva_args), "scaling_factor": config.scaling_factor},
    }


FORM = HFForm(
    architecture="ChatGLMModel",
    also_named=("ChatGLMForConditionalGeneration",),
    model_class="GLM4VModel",
    config_class=GLM4VConfig,
    keys=KEYS,
    versions={},
    sizes_to_sat=_sizes_to_sat,
    sizes_to_hf=_sizes_to_hf,
    telling=lambda data: bool(data.get("vision_config")),  # a GLM-4 without images has the same class
)
