"""CogVideoX between SAT's names and those of diffusers' `CogVideoXTransformer3DModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_models.models.cogvideox.config import MODEL_CLASS, CogVideoXConfig
from sat_models.models.cogvideox.released import OF_1_5, of_kind
from sat_models.models.common.diffusers_form import scheduler
from sat_models.models.common.hf_form import LEFT_OUT, HFForm, KeyTable
from sat_models.models.common.key_rows import Interleaved, Joined, Row

_SAT, _HF, _MIXIN = "transformer.layers.{i}", "transformer_blocks.{i}", "mixins.adaln_layer"
_TABLE = "mixins.pos_embed.pos_embedding"
_UNUSED = "transformer.position_embeddings.weight"
_COMPUTED = ("mixins.pos_embed.freqs_sin", "mixins.pos_embed.freqs_cos")


def _rows(config: CogVideoXConfig) -> dict[str, Row]:
    rows: dict[str, Row] = {_TABLE: "patch_embed.pos_embedding"} if config.learned_positions else {}
    for part in ("weight", "bias"):
        norms = tuple(f"{_HF}.norm{n}.linear.{part}" for n in (1, 2))
        rows |= {
            f"mixins.patch_embed.proj.{part}": f"patch_embed.proj.{part}",
            f"mixins.patch_embed.text_proj.{part}": f"patch_embed.text_proj.{part}",
            f"time_embed.0.{part}": f"time_embedding.linear_1.{part}",
            f"time_embed.2.{part}": f"time_embedding.linear_2.{part}",
            f"{_MIXIN}.adaLN_modulations.{{i}}.1.{part}": Interleaved(norms, 2),
            f"{_MIXIN}.query_layernorm_list.{{i}}.{part}": f"{_HF}.attn1.norm_q.{part}",
            f"{_MIXIN}.key_layernorm_list.{{i}}.{part}": f"{_HF}.attn1.norm_k.{part}",
            f"{_SAT}.input_layernorm.{part}": f"{_HF}.norm1.norm.{part}",
            f"{_SAT}.post_attention_layernorm.{part}": f"{_HF}.norm2.norm.{part}",
            f"{_SAT}.attention.query_key_value.{part}": Joined(tuple(f"{_HF}.attn1.to_{x}.{part}" for x in "qkv")),
            f"{_SAT}.attention.dense.{part}": f"{_HF}.attn1.to_out.0.{part}",
            f"{_SAT}.mlp.dense_h_to_4h.{part}": f"{_HF}.ff.net.0.proj.{part}",
            f"{_SAT}.mlp.dense_4h_to_h.{part}": f"{_HF}.ff.net.2.{part}",
            f"transformer.final_layernorm.{part}": f"norm_final.{part}",
            f"mixins.final_layer.norm_final.{part}": f"norm_out.norm.{part}",
            f"mixins.final_layer.adaLN_modulation.1.{part}": f"norm_out.linear.{part}",
            f"mixins.final_layer.linear.{part}": f"proj_out.{part}",
        }
        if config.ofs_dim:
            rows |= {f"ofs_embed.{n}.{part}": f"ofs_embedding.linear_{n // 2 + 1}.{part}" for n in (0, 2)}
    return rows


def keys(config: CogVideoXConfig) -> KeyTable:
    """The table for a kind."""
    tables = () if config.learned_positions else (_TABLE,)
    return KeyTable(_rows(config), left_out=(*_COMPUTED, _UNUSED, *tables))


_SIZES = {
    "num_layers": ("num_layers", 30),
    "num_attention_heads": ("num_attention_heads", 30),
    "in_channels": ("in_channels", 16),
    "out_channels": ("out_channels", 16),
    "patch_size": ("patch_size", 2),
    "time_embed_dim": ("time_embed_dim", 512),
    "text_hidden_size": ("text_embed_dim", 4096),
    "text_length": ("max_text_seq_length", 226),
    "learned_positions": ("use_learned_positional_embeddings", False),
    "latent_height": ("sample_height", 60),
    "latent_width": ("sample_width", 90),
    "spatial_scale": ("spatial_interpolation_scale", 1.875),
    "frames_per_latent": ("temporal_compression_ratio", 4),
    "usual_frames": ("sample_frames", 49),
}
"""With the defaults of diffusers' class, which it leaves out of its files now and then."""


def _sizes_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    sizes = {sat: data.get(hf, default) for sat, (hf, default) in _SIZES.items()}
    frames = data.get("patch_size_t") or 1
    positions = "rotary" if data.get("use_rotary_positional_embeddings") else "sincos"
    of_release = of_kind(positions, frames)
    if frames > 1:
        pixels = CogVideoXConfig.pixels_per_latent
        sides = {f"usual_{side}": sizes[f"latent_{side}"] * pixels for side in ("height", "width")}
        of_release |= {name: min(value, OF_1_5[name]) for name, value in sides.items()}
    else:
        of_release["latent_frames"] = (sizes["usual_frames"] - 1) // sizes["frames_per_latent"] + 1
    told, vae = data.get("scheduler") or {}, data.get("vae") or {}
    given = {"snr_shift": told.get("snr_shift_scale"), "latent_scale": vae.get("scaling_factor")}
    return {
        **of_release,
        **sizes,
        **{name: value for name, value in given.items() if value is not None},
        "hidden_size": data.get("attention_head_dim", 64) * sizes["num_attention_heads"],
        "positions": positions,
        "patch_frames": frames,
        "ofs_dim": data.get("ofs_embed_dim") or 0,
        "unused_positions": data.get(LEFT_OUT, {}).get(_UNUSED, (0,))[0],
    }


def _sizes_to_hf(config: CogVideoXConfig) -> dict[str, Any]:
    return {
        **{hf: getattr(config, sat) for sat, (hf, _) in _SIZES.items()},
        "attention_head_dim": config.hidden_size // config.num_attention_heads,
        "patch_size_t": config.patch_frames if config.patch_frames > 1 else None,
        "patch_bias": config.patch_frames == 1,
        "ofs_embed_dim": config.ofs_dim or None,
        "use_rotary_positional_embeddings": config.positions == "rotary",
    }


def _pipeline(config: CogVideoXConfig) -> tuple[dict[str, Any], str]:
    name = "CogVideoXDDIMScheduler" if config.positions == "sincos" else "CogVideoXDPMScheduler"
    pipeline = "CogVideoXImageToVideoPipeline" if config.takes_image else "CogVideoXPipeline"
    return scheduler(name, config.snr_shift), pipeline


FORM = HFForm(
    architecture="CogVideoXTransformer3DModel",
    model_class=MODEL_CLASS,
    config_class=CogVideoXConfig,
    keys=keys,
    versions={},
    sizes_to_sat=_sizes_to_sat,
    sizes_to_hf=_sizes_to_hf,
    layout="diffusers",
    pipeline=_pipeline,
    of_left_out=("unused_positions",),
)
