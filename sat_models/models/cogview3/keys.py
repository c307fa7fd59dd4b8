"""CogView3-Plus between SAT's names and those of diffusers' `CogView3PlusTransformer2DModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_models.config.diffusion import limits
from sat_models.models.cogview3.config import MODEL_CLASS, CogView3PlusConfig
from sat_models.models.common.diffusers_form import scheduler
from sat_models.models.common.hf_form import HFForm, KeyTable
from sat_models.models.common.key_rows import Joined, Row, Swapped

_SAT, _HF = "transformer.layers.{i}", "transformer_blocks.{i}"
_EMBEDDERS = "time_condition_embed"


def _rows() -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for part in ("weight", "bias"):
        rows |= {
            f"mixins.patch_embed.proj.{part}": f"patch_embed.proj.{part}",
            f"mixins.patch_embed.text_proj.{part}": f"patch_embed.text_proj.{part}",
            f"time_embed.0.{part}": f"{_EMBEDDERS}.timestep_embedder.linear_1.{part}",
            f"time_embed.2.{part}": f"{_EMBEDDERS}.timestep_embedder.linear_2.{part}",
            f"label_emb.0.0.{part}": f"{_EMBEDDERS}.condition_embedder.linear_1.{part}",
            f"label_emb.0.2.{part}": f"{_EMBEDDERS}.condition_embedder.linear_2.{part}",
            f"mixins.adaln.adaln_modules.{{i}}.1.{part}": f"{_HF}.norm1.linear.{part}",
            f"{_SAT}.attention.query_key_value.{part}": Joined(tuple(f"{_HF}.attn1.to_{x}.{part}" for x in "qkv")),
            f"{_SAT}.attention.dense.{part}": f"{_HF}.attn1.to_out.0.{part}",
            f"{_SAT}.mlp.dense_h_to_4h.{part}": f"{_HF}.ff.net.0.proj.{part}",
            f"{_SAT}.mlp.dense_4h_to_h.{part}": f"{_HF}.ff.net.2.{part}",
            f"mixins.final_layer.adaln.1.{part}": Swapped(f"norm_out.linear.{part}"),
            f"mixins.final_layer.linear.{part}": f"proj_out.{part}",
        }
    return rows


KEYS = KeyTable(_rows(), left_out=("mixins.pos_embed.image_pos_embedding",))

_SIZES = {
    "num_layers": ("num_layers", 30),
    "num_attention_heads": ("num_attention_heads", 64),
    "in_channels": ("in_channels", 16),
    "patch_size": ("patch_size", 2),
    "time_embed_dim": ("time_embed_dim", 512),
    "text_hidden_size": ("text_embed_dim", 4096),
    "condition_dim": ("condition_dim", 256),
    "pos_max": ("pos_embed_max_size", 128),
}
"""With the defaults of diffusers' class, which it leaves out of its files now and then."""


def _sizes_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {sat: data.get(hf, default) for sat, (hf, default) in _SIZES.items()}
    told = data.get("scheduler") or {}
    return {
        **sizes,
        "hidden_size": data.get("attention_head_dim", 40) * sizes["num_attention_heads"],
        "snr_shift": told.get("snr_shift_scale", CogView3PlusConfig.snr_shift),
        **limits(sizes["pos_max"], CogView3PlusConfig.pixels_per_latent * sizes["patch_size"]),
    }


def _sizes_to_hf(config: CogView3PlusConfig) -> dict[str, Any]:
    return {
        **{hf: getattr(config, sat) for sat, (hf, _) in _SIZES.items()},
        "attention_head_dim": config.hidden_size // config.num_attention_heads,
        "out_channels": config.in_channels,
        "sample_size": config.pos_max,
    }


def _pipeline(config: CogView3PlusConfig) -> tuple[dict[str, Any], str]:
    return scheduler("CogVideoXDDIMScheduler", config.snr_shift), "CogView3PlusPipeline"


FORM = HFForm(
    architecture="CogView3PlusTransformer2DModel",
    model_class=MODEL_CLASS,
    config_class=CogView3PlusConfig,
    keys=KEYS,
    versions={},
    sizes_to_sat=_sizes_to_sat,
    sizes_to_hf=_sizes_to_hf,
    layout="diffusers",
    pipeline=_pipeline,
)
