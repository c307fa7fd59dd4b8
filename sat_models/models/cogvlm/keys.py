"""CogVLM between SAT's names and Hugging Face's (the modelling code of THUDM/cogvlm-chat-hf)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_models.config import VisionTowerConfig
from sat_models.errors import ConfigError
from sat_models.models.cogvlm.config import CogVLMConfig
from sat_models.models.common.hf_form import HFForm, KeyTable
from sat_models.models.common.llama_keys import refuse_variants

_TOWER, _HF_TOWER = "mixins.eva.vit_model.transformer", "model.vision.transformer"

KEYS = KeyTable(
    {
        "transformer.word_embeddings.weight": "model.embed_tokens.weight",
        "transformer.final_layernorm.weight": "model.norm.weight",
        "mixins.lm.lm_head.weight": "lm_head.weight",
        "transformer.layers.{i}.input_layernorm.weight": "model.layers.{i}.input_layernorm.weight",
        "transformer.layers.{i}.post_attention_layernorm.weight": "model.layers.{i}.post_attention_layernorm.weight",
        "transformer.layers.{i}.attention.query_key_value.weight": (
            "model.layers.{i}.self_attn.language_expert_query_key_value.weight"
        ),
        "transformer.layers.{i}.attention.dense.weight": "model.layers.{i}.self_attn.language_expert_dense.weight",
        "mixins.rotary.vision_query_key_value_list.{i}.weight": (
            "model.layers.{i}.self_attn.vision_expert_query_key_value.weight"
        ),
        "mixins.rotary.vision_dense_list.{i}.weight": "model.layers.{i}.self_attn.vision_expert_dense.weight",
        "transformer.layers.{i}.mlp.dense_h_to_4h.weight": "model.layers.{i}.mlp.language_mlp.up_proj.weight",
        "transformer.layers.{i}.mlp.dense_4h_to_h.weight": "model.layers.{i}.mlp.language_mlp.down_proj.weight",
        "mixins.mlp.gate_proj.{i}.weight": "model.layers.{i}.mlp.language_mlp.gate_proj.weight",
        "mixins.mlp.vision_dense_h_to_4h_list.{i}.weight": "model.layers.{i}.mlp.vision_mlp.up_proj.weight",
        "mixins.mlp.vision_dense_4h_to_h_list.{i}.weight": "model.layers.{i}.mlp.vision_mlp.down_proj.weight",
        "mixins.mlp.vision_gate_proj.{i}.weight": "model.layers.{i}.mlp.vision_mlp.gate_proj.weight",
        "mixins.eva.boi": "model.vision.boi",
        "mixins.eva.eoi": "model.vision.eoi",
        "mixins.eva.linear_proj.linear_proj.weight": "model.vision.linear_proj.linear_proj.weight",
        "mixins.eva.linear_proj.norm1.weight": "model.vision.linear_proj.norm1.weight",
        "mixins.eva.linear_proj.norm1.bias": "model.vision.linear_proj.norm1.bias",
        "mixins.eva.linear_proj.dense_h_to_4h.weight": "model.vision.linear_proj.dense_h_to_4h.weight",
        "mixins.eva.linear_proj.gate_proj.weight": "model.vision.linear_proj.gate_proj.weight",
        "mixins.eva.linear_proj.dense_4h_to_h.weight": "model.vision.linear_proj.dense_4h_to_h.weight",
        "mixins.eva.vit_model.mixins.patch_embedding.proj.weight": "model.vision.patch_embedding.proj.weight",
        "mixins.eva.vit_model.mixins.patch_embedding.proj.bias": "model.vision.patch_embedding.proj.bias",
        f"{_TOWER}.word_embeddings.weight": "model.vision.patch_embedding.cls_embedding",
        f"{_TOWER}.position_embeddings.weight": "model.vision.patch_embedding.position_embedding.weight",
        f"{_TOWER}.layers.{{j}}.input_layernorm.weight": f"{_HF_TOWER}.layers.{{j}}.input_layernorm.weight",
        f"{_TOWER}.layers.{{j}}.input_layernorm.bias": f"{_HF_TOWER}.layers.{{j}}.input_layernorm.bias",
        f"{_TOWER}.layers.{{j}}.attention.query_key_value.weight": (
            f"{_HF_TOWER}.layers.{{j}}.attention.query_key_value.weight"
        ),
        f"{_TOWER}.layers.{{j}}.attention.query_key_value.bias": (
            f"{_HF_TOWER}.layers.{{j}}.attention.query_key_value.bias"
        ),
        f"{_TOWER}.layers.{{j}}.attention.dense.weight": f"{_HF_TOWER}.layers.{{j}}.attention.dense.weight",
        f"{_TOWER}.layers.{{j}}.attention.dense.bias": f"{_HF_TOWER}.layers.{{j}}.attention.dense.bias",
        f"{_TOWER}.layers.{{j}}.post_attention_layernorm.weight": (
            f"{_HF_TOWER}.layers.{{j}}.post_attention_layernorm.weight"
        ),
        f"{_TOWER}.layers.{{j}}.post_attention_layernorm.bias": (
            f"{_HF_TOWER}.layers.{{j}}.post_attention_layernorm.bias"
        ),
        f"{_TOWER}.layers.{{j}}.mlp.dense_h_to_4h.weight": f"{_HF_TOWER}.layers.{{j}}.mlp.fc1.weight",
        f"{_TOWER}.layers.{{j}}.mlp.dense_h_to_4h.bias": f"{_HF_TOWER}.layers.{{j}}.mlp.fc1.bias",
        f"{_TOWER}.layers.{{j}}.mlp.dense_4h_to_h.weight": f"{_HF_TOWER}.layers.{{j}}.mlp.fc2.weight",
        f"{_TOWER}.layers.{{j}}.mlp.dense_4h_to_h.bias": f"{_HF_TOWER}.layers.{{j}}.mlp.fc2.bias",
    },
    per_layer={"mixins.rotary.rotary_emb.inv_freq": "model.layers.{i}.self_attn.rotary_emb.inv_freq"},
)

_SIZES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "inner_hidden_size": "intermediate_size",
    "vocab_size": "vocab_size",
    "max_sequence_length": "max_position_embeddings",
    "layernorm_epsilon": "rms_norm_eps",
}
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_TOWER_SIZES = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "inner_hidden_size": "intermediate_size",
    "patch_size": "patch_size",
    "layernorm_epsilon": "layer_norm_eps",
}


def sizes_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a `config.json` under SAT's names. Raises KeyError for an absent one."""
    _check_activation(data, "silu")
    refuse_variants(data, heads=data["num_attention_heads"])
    return {
        **{sat: data[hf] for sat, hf in _SIZES.items()},
        **{name: data[name] for name in _IDS if isinstance(data.get(name), (int, list))},
        "image_length": data["vision_config"]["num_positions"] - 1,
        "eva_args": tower_to_sat(data["vision_config"]),
    }


def tower_to_sat(tower: Mapping[str, Any]) -> dict[str, Any]:
    """`eva_args` of a `vision_config`. Raises KeyError for an absent size."""
    _check_activation(tower, "gelu")
    return {
        **{sat: tower[hf] for sat, hf in _TOWER_SIZES.items()},
        "max_sequence_length": tower["num_positions"],
        "image_size": [tower["image_size"]] * 2,
        "in_channels": tower.get("in_channels", 3),
    }


def _check_activation(data: Mapping[str, Any], allowed: str) -> None:
    if data.get("hidden_act", allowed) != allowed:
        raise ConfigError(f"hidden_act {data['hidden_act']!r} is not supported; '{allowed}' is what CogVLM has")


def sizes_to_hf(config: CogVLMConfig) -> dict[str, Any]:
    """The sizes of a typed config as `config.json` has them."""
    return {
        **{hf: getattr(config, sat) for sat, hf in _SIZES.items()},
        **{name: getattr(config, name) for name in _IDS},
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "use_cache": True,
        "vision_config": tower_to_hf(config.eva_args),
    }


def tower_to_hf(tower: VisionTowerConfig) -> dict[str, Any]:
    """The inverse of `tower_to_sat`."""
    return {
        **{hf: getattr(tower, sat) for sat, hf in _TOWER_SIZES.items()},
        "dropout_prob": 0.0,
        "hidden_act": "gelu",
        "in_channels": tower.in_channels,
        "num_positions": tower.num_patches + 1,
        "image_size": tower.image_size[0],
    }


FORM = HFForm(
    architecture="CogVLMForCausalLM",
    model_class="CogVLMModel",
    config_class=CogVLMConfig,
    keys=KEYS,
    versions={"base": "base", "chat": "chat_old", "vqa": "vqa"},
    sizes_to_sat=sizes_to_sat,
    sizes_to_hf=sizes_to_hf,
    telling=lambda data: "num_multi_query_heads" not in data,  # CogVLM2 has the same architectures
)

to_sat, to_hf = KEYS.to_sat, KEYS.to_hf
config_to_sat, config_to_hf = FORM.config_to_sat, FORM.config_to_hf
