"""CogView3's UNets between SAT's names (those of latent diffusion) and diffusers' `UNet2DConditionModel`.

Sources: github.com/THUDM/CogView3 at d450a74, `sat/sgm/modules/diffusionmodules/openaimodel.py`; diffusers 0.42.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sat_models.config.thin import UNetConfig
from sat_models.errors import ConfigError
from sat_models.models.cogview3_unet.config import CONDITIONS, MODEL_CLASS, CogView3UNetConfig, limits
from sat_models.models.common.hf_form import HFForm, KeyTable

_ALONE = (
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("w_proj", "time_embedding.cond_proj"),
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
)
_RESIDUAL = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)
_LAYER = (
    *(f"{attention}.{part}" for attention in ("attn1", "attn2") for part in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj",
    "ff.net.2",
    "norm1",
    "norm2",
    "norm3",
)
"""Modules of a layer of attention, called the same on both sides."""


def modules(config: UNetConfig) -> Iterator[tuple[str, str]]:
    """The names of all modules with weights, in SAT's files and in diffusers; of some kinds not every block has one."""
    yield from _ALONE
    depths, blocks, number = config.transformer_depth, config.num_res_blocks, 1
    for level, depth in enumerate(depths):
        there = f"down_blocks.{level}"
        for block in range(blocks):
            yield from _block(f"input_blocks.{number}", there, block, depth)
            number += 1
        if level < len(depths) - 1:
            yield f"input_blocks.{number}.0.op", f"{there}.downsamplers.0.conv"
            number += 1
    yield from _residual("middle_block.0", "mid_block.resnets.0")
    yield from _attention("middle_block.1", "mid_block.attentions.0", depths[-1])
    yield from _residual("middle_block.2", "mid_block.resnets.1")
    number = 0
    for up, depth in enumerate(reversed(depths)):
        there = f"up_blocks.{up}"
        for block in range(blocks + 1):
            yield from _block(f"output_blocks.{number}", there, block, depth)
            if block == blocks and up < len(depths) - 1:
                yield f"output_blocks.{number}.{2 if depth else 1}.conv", f"{there}.upsamplers.0.conv"
            number += 1


def _block(own: str, there: str, number: int, depth: int) -> Iterator[tuple[str, str]]:
    yield from _residual(f"{own}.0", f"{there}.resnets.{number}")
    if depth:
        yield from _attention(f"{own}.1", f"{there}.attentions.{number}", depth)


def _residual(own: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield from ((f"{own}.{first}", f"{theirs}.{second}") for first, second in _RESIDUAL)


def _attention(own: str, theirs: str, depth: int) -> Iterator[tuple[str, str]]:
    yield from ((f"{own}.{part}", f"{theirs}.{part}") for part in ("norm", "proj_in", "proj_out"))
    for layer in range(depth):
        inside = f"transformer_blocks.{layer}"
        yield from ((f"{own}.{inside}.{part}", f"{theirs}.{inside}.{part}") for part in _LAYER)


def keys_of(config: UNetConfig) -> KeyTable:
    """The names of all weights."""
    pairs = list(modules(config))
    return KeyTable({f"{own}.{part}": f"{theirs}.{part}" for own, theirs in pairs for part in ("weight", "bias")})


def network_config(config: UNetConfig) -> dict[str, Any]:
    """The arguments of diffusers' class."""
    attentive = [bool(depth) for depth in config.transformer_depth]
    return {
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.num_res_blocks,
        "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attentive],
        "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attentive)],
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "transformer_layers_per_block": [depth or 1 for depth in config.transformer_depth],
        # what diffusers calls so is the number of heads
        "attention_head_dim": [max(wide // config.num_head_channels, 1) for wide in config.channels],
        "use_linear_projection": True,
        "cross_attention_dim": config.text_hidden_size,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": config.condition_dim,
        "projection_class_embeddings_input_dim": CONDITIONS * config.condition_dim,
        "time_cond_proj_dim": config.cfg_cond_embed_dim,
        "sample_size": config.usual_size[0] // config.pixels_per_latent,
    }


def _sizes_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    channels = data["block_out_channels"]
    attentive = ["CrossAttn" in name for name in data["down_block_types"]]
    depths = _each(data.get("transformer_layers_per_block", 1), channels)
    heads = _each(data["attention_head_dim"], channels)
    widths = {wide // count for wide, count, has in zip(channels, heads, attentive, strict=True) if has}
    if len(widths) != 1:
        raise ConfigError(f"attention_head_dim {heads} of {channels} channels: heads of one width are read")
    found = {
        "model_channels": channels[0],
        "channel_mult": [wide // channels[0] for wide in channels],
        "num_res_blocks": data["layers_per_block"],
        "transformer_depth": [depth if has else 0 for depth, has in zip(depths, attentive, strict=True)],
        "num_head_channels": widths.pop(),
        "in_channels": data["in_channels"],
        "text_hidden_size": data["cross_attention_dim"],
        "condition_dim": data["addition_time_embed_dim"],
        **limits(len(channels), enlarges=False),
    }
    guidance = data.get("time_cond_proj_dim")
    return found if guidance is None else {**found, "cfg_cond_embed_dim": guidance}


def _each(value: Any, levels: Sequence[Any]) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * len(levels)


def _told_by_numbers(data: Mapping[str, Any]) -> bool:
    """SDXL's own UNet reads a text beside the numbers that describe an image."""
    width = data.get("addition_time_embed_dim")
    return bool(width) and data.get("projection_class_embeddings_input_dim") == CONDITIONS * width


def _pipeline(config: UNetConfig) -> tuple[dict[str, Any], str]:
    scheduler = {
        "_class_name": "EulerDiscreteScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    }
    return scheduler, "DiffusionPipeline"


FORM = HFForm(
    architecture="UNet2DConditionModel",
    model_class=MODEL_CLASS,
    config_class=CogView3UNetConfig,
    keys=keys_of,
    versions={},
    sizes_to_sat=_sizes_to_sat,
    sizes_to_hf=network_config,
    telling=_told_by_numbers,
    layout="diffusers",
    pipeline=_pipeline,
    part="unet",
)
