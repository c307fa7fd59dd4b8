"""InternLM-XComposer2 between SAT's names and those of its releases (remote code of internlm/internlm-xcomposer2-*).

The releases' `config.json` names neither the tower's sizes nor the ranks of Partial LoRA, nor whether images are cut:
the weights say it. What we write does name them, as the golden data do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from sat_models.errors import ConfigError
from sat_models.models.common.clip_keys import CLIP_LARGE, clip_rows, clip_sizes, clip_sizes_to_hf
from sat_models.models.common.hf_form import WEIGHT_SHAPES, HFForm, KeyTable
from sat_models.models.common.internlm2_keys import LINEARS, internlm2_rows, internlm2_sizes, internlm2_sizes_to_hf
from sat_models.models.common.key_rows import Packed, Positions, Row
from sat_models.models.common.llama_keys import ROTARY_TABLE
from sat_models.models.xcomposer2.config import JOINED, XComposer2Config
from sat_models.models.xcomposer2.tiles import TiledImages

_TOWER = "vit.vision_tower.vision_model"
_POSITIONS = f"{_TOWER}.embeddings.position_embedding.weight"
_SEPARATOR, _NEWLINE = "plora_glb_GN", "plora_sub_GN"
_NO_WEIGHT = re.compile(rf"^{re.escape(_TOWER)}\.(post_layernorm\.|embeddings\.position_ids$)|\.rotary_emb\.inv_freq$")
"""Weights that some files hold and nobody reads."""
_STRETCHED, _LARGE = 490, 560
"""Sides of images that `config.json` need not name: of vl-7b, and of a tile of 2.5 (else of `_TILE`)."""
_TILE = 336


def _keys(config: XComposer2Config) -> KeyTable:
    layer = "model.layers.{i}"
    rows: dict[str, Row] = {**internlm2_rows("model", "output"), **clip_rows(_TOWER, last_norm=False)}
    for ours, theirs in LINEARS.items():
        sat = f"mixins.plora.{ours.rpartition('.')[2]}.{{i}}"
        rows[f"{sat}.A.weight"] = f"{layer}.{theirs}.Plora_A.weight"
        B = f"{layer}.{theirs}.Plora_B.weight"
        rows[f"{sat}.B.weight"] = Packed(B) if theirs == "attention.wqkv" else B
    for number, linear in ((0, "linear_1"), (2, "linear_2")):
        for part in ("weight", "bias"):
            rows[f"mixins.eva.linear_proj.{linear}.{part}"] = f"vision_proj.{number}.{part}"
    if config.tiling is None:  # the original resizes CLIP's table to that of its images
        table = "mixins.eva.vit_model.transformer.position_embeddings.weight"
        rows[table] = Positions(_POSITIONS, config.eva_args.num_patches)
    else:
        rows |= {"mixins.eva.separator": _SEPARATOR, "mixins.eva.newline": _NEWLINE}
    return KeyTable(rows, left_out=(ROTARY_TABLE,))


def _canonical(name: str) -> str | None:
    return None if _NO_WEIGHT.search(name) else name


def _sizes_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    if data.get("quantization_config"):
        raise ConfigError(
            "an InternLM-XComposer2 in GPTQ's 4 bits cannot be read; take the full-precision release, and --quant 4"
        )
    shapes = data.get(WEIGHT_SHAPES, {})
    tiled = _SEPARATOR in shapes if shapes else "img_size" not in data
    given = data.get("vision_config") or {}
    side = given.get("image_size") or _side(data, shapes, tiled=tiled)
    tower = clip_sizes({**CLIP_LARGE, **given, "image_size": side})
    sizes = internlm2_sizes(data)
    end = sizes["eos_token_id"]
    ends = end if isinstance(end, list) else [sizes["vocab_size"] - 2, end]  # role tokens are the last two pieces
    patches = side // tower["patch_size"]
    base = {"rope_theta": data["rope_theta"]} if "rope_theta" in data else {}  # `sizes` leave LLaMA's out; ours differs
    found = {**sizes, **base, **_plora_sizes(data, shapes), "eos_token_id": ends, "eva_args": tower}
    if not tiled:
        return {**found, "image_length": patches**2}
    tiling = _tiling(side, {**data, **found})
    style = {"text_processor_version": "xcomposer2d5"} if tiling == "2d5" else {}
    least = TiledImages.tokens_of(1, 1, patches // JOINED)
    return {**found, **style, "tiling": tiling, "image_length": least}


def _tiling(side: int, data: Mapping[str, Any]) -> str:
    """Which tiled form it is: by the side of a tile in the releases; else 4KHD alone has a product of its own to
    queries, keys and values."""
    if side in (_TILE, _LARGE):
        return "4khd" if side == _TILE else "2d5"
    return "4khd" if data.keys() & {"plora_wqkv", "plora_qkv_rank", "plora_qkv_scale"} else "2d5"


def _side(data: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], *, tiled: bool) -> int:
    """Of images or tiles in pixels, where `config.json` does not say it."""
    if not tiled:
        return data.get("img_size", _STRETCHED)
    rows = shapes.get(_POSITIONS, (0,))[0]
    return math.isqrt(rows - 1) * CLIP_LARGE["patch_size"] if rows > 1 else _TILE


def _plora_sizes(data: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Ranks and scale; the scale stands in no file of 4KHD, which alone has another rank in `wqkv`."""

    def rank(linear: str, otherwise: int) -> int:
        return shapes.get(f"model.layers.0.{linear}.Plora_A.weight", (otherwise,))[0]

    given = data.get("plora_wqkv") or {}
    usual = rank("attention.wo", data.get("plora_rank", 256))
    mixed = rank("attention.wqkv", given.get("rank", usual))
    scale = given.get("scale", 1.0 if mixed == usual else 2.0)
    own = {} if mixed == usual else {"plora_qkv_rank": mixed}
    return {"plora_rank": usual, **own, **({} if scale == 1.0 else {"plora_qkv_scale": scale})}


def _sizes_to_hf(config: XComposer2Config) -> dict[str, Any]:
    rank = config.plora_qkv_rank or config.plora_rank
    same = rank == config.plora_rank and config.plora_qkv_scale == 1.0 and config.tiling != "4khd"
    return {
        **internlm2_sizes_to_hf(config),
        "model_type": "internlmxcomposer2",
        "eos_token_id": config.eos_token_ids[-1],
        **({"img_size": config.image_size} if config.tiling is None else {}),
        "vision_config": clip_sizes_to_hf(config.eva_args),
        "plora_rank": config.plora_rank,
        **({} if same else {"plora_wqkv": {"rank": rank, "scale": config.plora_qkv_scale}}),
    }


FORM = HFForm(
    architecture="InternLMXComposer2ForCausalLM",
    model_class="XComposer2Model",
    config_class=XComposer2Config,
    keys=_keys,
    versions={},
    sizes_to_sat=_sizes_to_sat,
    sizes_to_hf=_sizes_to_hf,
    canonical=_canonical,
    reads_weights=True,
)
