"""CogView4's weights, which have diffusers' names only, and its sizes in diffusers' files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_models.config.diffusion import limits
from sat_models.config.thin import FlowConfig
from sat_models.errors import ConfigError
from sat_models.models.cogview4.config import MODEL_CLASS, CogView4Config
from sat_models.models.common.hf_form import HFForm, KeyTable

_EMBEDDERS = ("timestep_embedder", "condition_embedder")
_MODULES = (
    "patch_embed.proj",
    "patch_embed.text_proj",
    *(f"time_condition_embed.{which}.linear_{number}" for which in _EMBEDDERS for number in (1, 2)),
    *(f"transformer_blocks.{{i}}.attn1.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"transformer_blocks.{{i}}.{part}" for part in ("norm1.linear", "ff.net.0.proj", "ff.net.2")),
    "norm_out.linear",
    "proj_out",
)
_SIZES = {
    "num_layers": ("num_layers", 30),
    "num_attention_heads": ("num_attention_heads", 64),
    "head_dim": ("attention_head_dim", 40),
    "in_channels": ("in_channels", 16),
    "patch_size": ("patch_size", 2),
    "time_embed_dim": ("time_embed_dim", 512),
    "text_hidden_size": ("text_embed_dim", 4096),
    "condition_dim": ("condition_dim", 256),
    "pos_max": ("pos_embed_max_size", 128),
    "sample_size": ("sample_size", 128),
    "rope_axes": ("rope_axes_dim", (256, 256)),
}
"""With the defaults of diffusers' class, which it leaves out of its files now and then."""
_SHIFTS = {"base_shift": "base_shift", "max_shift": "max_shift", "base_tokens": "base_image_seq_len"}
"""Of the scheduler."""


def network_config(config: FlowConfig) -> dict[str, Any]:
    """The arguments of diffusers' class."""
    sizes = {theirs: getattr(config, own) for own, (theirs, _) in _SIZES.items()}
    return {**sizes, "out_channels": config.in_channels}


def _sizes_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {own: data.get(theirs, default) for own, (theirs, default) in _SIZES.items()}
    scheduler = data.get("scheduler") or {}
    if scheduler and not (scheduler.get("use_dynamic_shifting") and scheduler.get("time_shift_type") == "linear"):
        raise ConfigError(
            "scheduler_config.json is not CogView4's: use_dynamic_shifting must be true and time_shift_type 'linear'"
        )
    shifts = {own: scheduler[theirs] for own, theirs in _SHIFTS.items() if theirs in scheduler}
    token = CogView4Config.pixels_per_latent * sizes["patch_size"]
    return {**sizes, **shifts, **limits(sizes["pos_max"], token)}


FORM = HFForm(
    architecture="CogView4Transformer2DModel",
    model_class=MODEL_CLASS,
    config_class=CogView4Config,
    keys=KeyTable({f"{name}.{part}": f"{name}.{part}" for name in _MODULES for part in ("weight", "bias")}),
    versions={},
    sizes_to_sat=_sizes_to_sat,
    layout="diffusers",
)
