"""A CLIP tower between SAT's names and those of transformers' `CLIPVisionModel`, for those who have one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_models.config.towers import CLIPTowerConfig
from sat_models.errors import ConfigError
from sat_models.models.common.hf_form import Joined, Lifted, Row

_SAT = "mixins.eva.vit_model"
_BOTH = ("weight", "bias")
_SIZES = {
    "num_layers": ("num_hidden_layers", 12),
    "hidden_size": ("hidden_size", 768),
    "num_attention_heads": ("num_attention_heads", 12),
    "inner_hidden_size": ("intermediate_size", 3072),
    "patch_size": ("patch_size", 32),
    "in_channels": ("num_channels", 3),
    "layernorm_epsilon": ("layer_norm_eps", 1e-5),
}
"""Transformers leaves out of a nested config what is the default of its class."""
CLIP_LARGE = {
    "num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096,
    "patch_size": 14,
}  # fmt: skip
"""CLIP ViT-L/14."""


def clip_rows(tower: str, *, last_norm: bool = True) -> dict[str, Row]:
    """Rows of a key table for the tower in "eva", whose names start with `tower`.

    Args:
        last_norm: the files hold the norm behind the last layer, which no forward reads.
    """
    sat, hf = f"{_SAT}.transformer.layers.{{j}}", f"{tower}.encoder.layers.{{j}}"
    modules = {
        f"{_SAT}.mixins.early.pre_layernorm": f"{tower}.pre_layrnorm",
        **({f"{_SAT}.mixins.early.post_layernorm": f"{tower}.post_layernorm"} if last_norm else {}),
        f"{sat}.input_layernorm": f"{hf}.layer_norm1",
        f"{sat}.post_attention_layernorm": f"{hf}.layer_norm2",
        f"{sat}.attention.dense": f"{hf}.self_attn.out_proj",
        f"{sat}.mlp.dense_h_to_4h": f"{hf}.mlp.fc1",
        f"{sat}.mlp.dense_4h_to_h": f"{hf}.mlp.fc2",
    }
    return {
        f"{_SAT}.transformer.word_embeddings.weight": Lifted(f"{tower}.embeddings.class_embedding"),
        f"{_SAT}.transformer.position_embeddings.weight": f"{tower}.embeddings.position_embedding.weight",
        f"{_SAT}.mixins.patch_embedding.proj.weight": f"{tower}.embeddings.patch_embedding.weight",
        **{f"{ours}.{part}": f"{theirs}.{part}" for part in _BOTH for ours, theirs in modules.items()},
        **{
            f"{sat}.attention.query_key_value.{part}": Joined(tuple(f"{hf}.self_attn.{x}_proj.{part}" for x in "qkv"))
            for part in _BOTH
        },
    }


def clip_sizes(data: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a `CLIPVisionConfig` under SAT's names. Raises ConfigError for another activation."""
    if data.get("hidden_act", "quick_gelu") != "quick_gelu":
        raise ConfigError(f"vision_config.hidden_act {data['hidden_act']!r} is not supported; 'quick_gelu' is")
    side = data.get("image_size", 224)
    return {"image_size": [side, side], **{sat: data.get(hf, default) for sat, (hf, default) in _SIZES.items()}}


def clip_sizes_to_hf(tower: CLIPTowerConfig) -> dict[str, Any]:
    """The inverse, as transformers' `CLIPVisionConfig` has it."""
    return {
        "model_type": "clip_vision_model",
        **{hf: getattr(tower, sat) for sat, (hf, _) in _SIZES.items()},
        "image_size": tower.image_size[0],
        "hidden_act": "quick_gelu",
    }
