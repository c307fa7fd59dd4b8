"""CogAgent between SAT's names and Hugging Face's: CogVLM's table and what the high-resolution branch adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_models.errors import ConfigError
from sat_models.models.cogagent.config import CogAgentConfig
from sat_models.models.cogvlm import keys as cogvlm_keys
from sat_models.models.common.hf_form import HFForm

_BLOCK = "vit.model.blocks.{j}"
_ENCODER = (
    "pos_embed",
    "vit.model.cls_token",
    "vit.model.pos_embed",
    "vit.model.patch_embed.proj.weight",
    "vit.model.patch_embed.proj.bias",
    "vit.model.rope.freqs_cos",
    "vit.model.rope.freqs_sin",
    f"{_BLOCK}.norm1.weight",
    f"{_BLOCK}.norm1.bias",
    f"{_BLOCK}.attn.q_bias",
    f"{_BLOCK}.attn.v_bias",
    f"{_BLOCK}.attn.q_proj.weight",
    f"{_BLOCK}.attn.k_proj.weight",
    f"{_BLOCK}.attn.v_proj.weight",
    f"{_BLOCK}.attn.inner_attn_ln.weight",
    f"{_BLOCK}.attn.inner_attn_ln.bias",
    f"{_BLOCK}.attn.proj.weight",
    f"{_BLOCK}.attn.proj.bias",
    f"{_BLOCK}.attn.rope.freqs_cos",
    f"{_BLOCK}.attn.rope.freqs_sin",
    f"{_BLOCK}.norm2.weight",
    f"{_BLOCK}.norm2.bias",
    f"{_BLOCK}.mlp.w1.weight",
    f"{_BLOCK}.mlp.w1.bias",
    f"{_BLOCK}.mlp.w2.weight",
    f"{_BLOCK}.mlp.w2.bias",
    f"{_BLOCK}.mlp.ffn_ln.weight",
    f"{_BLOCK}.mlp.ffn_ln.bias",
    f"{_BLOCK}.mlp.w3.weight",
    f"{_BLOCK}.mlp.w3.bias",
    "vit.model.norm.weight",
    "vit.model.norm.bias",
    "vit.model.head.weight",
    "vit.model.head.bias",
)
"""Names of the high-resolution tower, the same on both sides."""

KEYS = cogvlm_keys.KEYS.extended(
    {
        "mixins.eva.pos_embed": "model.vision.pos_embed",
        "transformer.layers.{i}.post_cross_attention_layernorm.weight": (
            "model.layers.{i}.post_cross_attention_layernorm.weight"
        ),
        "transformer.layers.{i}.cross_attention.query.weight": "model.layers.{i}.cross_attn.query.weight",
        "transformer.layers.{i}.cross_attention.key_value.weight": "model.layers.{i}.cross_attn.key_value.weight",
        "transformer.layers.{i}.cross_attention.dense.weight": "model.layers.{i}.cross_attn.dense.weight",
        **{f"mixins.encoder.{name}": f"model.cross_vision.{name}" for name in _ENCODER},
    }
)


def _sizes_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    heads, width = data["num_attention_heads"], data["cross_compute_hidden_size"]
    if width % heads:
        raise ConfigError(f"cross_compute_hidden_size = {width} is not divisible by num_attention_heads = {heads}")
    return {
        **cogvlm_keys.sizes_to_sat(data),
        "cross_image_pix": data["cross_image_size"],
        "is_decoder": True,
        "cross_attn_hidden_size": data["cross_hidden_size"],
        "cross_hidden_size_per_attention_head": width // heads,
        "cross_vision_args": data.get("cross_vision_args", {}),  # not in released configs: the sizes are fixed there
    }


def _sizes_to_hf(config: CogAgentConfig) -> dict[str, Any]:
    return {
        **cogvlm_keys.sizes_to_hf(config),
        "cross_image_size": config.cross_image_pix,
        "cross_hidden_size": config.cross_attn_hidden_size,
        "cross_compute_hidden_size": config.cross_hidden_size_per_attention_head * config.num_attention_heads,
        "cross_vision_args": config.cross_vision_args.to_dict(),
    }


FORM = HFForm(
    architecture="CogAgentForCausalLM",
    model_class="CogAgentModel",
    config_class=CogAgentConfig,
    keys=KEYS,
    versions={name: name for name in ("base", "chat", "vqa", "chat_old")},
    sizes_to_sat=_sizes_to_sat,
    sizes_to_hf=_sizes_to_hf,
)

to_sat, to_hf = KEYS.to_sat, KEYS.to_hf
config_to_sat, config_to_hf = FORM.config_to_sat, FORM.config_to_hf
