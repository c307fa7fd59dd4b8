"""LLaVA between SAT's names and transformers' `LlavaForConditionalGeneration`; and the original layout, for reading.

Three layouts of the first are about: that of the hub (`language_model.model…`, `vision_tower.vision_model…`), which is
written, and what transformers 5 makes of it in memory and on disk.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sat_models.errors import ConfigError
from sat_models.models.common.clip_keys import CLIP_LARGE, clip_rows, clip_sizes, clip_sizes_to_hf
from sat_models.models.common.hf_form import Apart, HFForm, KeyTable
from sat_models.models.common.llama_keys import ROTARY_TABLE, llama_rows, llama_sizes, llama_sizes_to_hf
from sat_models.models.common.telling import has_intern_vit
from sat_models.models.llava.config import LLaVAConfig
from sat_models.models.llava.processor import hf_processor

KEYS = KeyTable(
    {
        **llama_rows("language_model.model", "language_model.lm_head"),
        **clip_rows("vision_tower.vision_model"),
        **{
            f"{sat}.{part}": f"{hf}.{part}"
            for part in ("weight", "bias")
            for sat, hf in {
                "mixins.eva.linear_proj.linear_1": "multi_modal_projector.linear_1",
                "mixins.eva.linear_proj.linear_2": "multi_modal_projector.linear_2",
                "mixins.eva.linear_proj": "multi_modal_projector",
            }.items()
        },
    },
    left_out=(ROTARY_TABLE,),
)

_RENAMED = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^model\.(language_model|vision_tower|multi_modal_projector)\.(?!vision_tower\.)", r"\1."),  # transformers 5
        (r"^language_model\.(?!model\.|lm_head\.)", "language_model.model."),
        (r"^model\.vision_tower\.vision_tower\.", "vision_tower."),  # the original
        (r"^model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),
        (r"^model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
        (r"^model\.mm_projector\.", "multi_modal_projector."),
        (r"^(vision_model\.)", r"vision_tower.\1"),  # CLIP's own files
        (r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^model\.", "language_model.model."),
    )
)
_NO_WEIGHT = re.compile(
    r"(\.rotary_emb\.inv_freq|\.position_ids)$|^(text_model|text_projection|visual_projection|logit_scale)\b"
)


def canonical(name: str) -> str | None:
    """A name of any of the layouts as that of the hub; None for what LLaVA does not need."""
    if _NO_WEIGHT.search(name):
        return None
    for pattern, instead in _RENAMED:
        name = pattern.sub(instead, name)
    return name


_IN_MEMORY = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^language_model\.lm_head\.", "lm_head."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^vision_tower\.vision_model\.", "model.vision_tower."),
        (r"^multi_modal_projector\.", "model.multi_modal_projector."),
    )
)


def in_memory(name: str) -> str:
    """A name of the hub's as that of the parameter in transformers' model."""
    for pattern, instead in _IN_MEMORY:
        name = pattern.sub(instead, name)
    return name


OWN_TOWER = "vision_tower.vision_tower."
"""In names of the original layout: the tower lies with the language model."""
KNOWN_TOWERS = {
    "openai/clip-vit-large-patch14": {**CLIP_LARGE, "image_size": 224},
    "openai/clip-vit-large-patch14-336": {**CLIP_LARGE, "image_size": 336},
}
"""Sizes of the towers that released LLaVA checkpoints name."""


def _with_tower(sizes: dict[str, Any], tower: dict[str, Any]) -> dict[str, Any]:
    return {**sizes, "eva_args": tower, "image_length": (tower["image_size"][0] // tower["patch_size"]) ** 2}


def _check(data: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    for name, value in allowed.items():
        if data.get(name, value) != value:
            raise ConfigError(f"{name} = {data[name]!r} is not supported; {value!r} is what LLaVA 1.5 has")


def _sizes_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    _check(data, {"vision_feature_select_strategy": "default", "projector_hidden_act": "gelu"})
    _check(data, {"multimodal_projector_bias": True})
    layer = data.get("vision_feature_layer", -2)
    sizes = _with_tower(llama_sizes(data["text_config"]), {**clip_sizes(data["vision_config"]), "feature_layer": layer})
    slot = data.get("image_token_index", 0)
    return {**sizes, "projector": "mlp2x_gelu", "image_token_id": slot if slot < sizes["vocab_size"] else 0}


def _sizes_to_hf(config: LLaVAConfig) -> dict[str, Any]:
    if config.projector != "mlp2x_gelu" or config.image_start_id is not None:
        raise ConfigError(
            "LLaVA 1.0 (one linear projector, marked pictures) has no form in transformers; only 1.5 can be written so"
        )
    tower = config.eva_args
    return {
        "model_type": "llava",
        "image_token_index": config.image_token_id,
        "image_seq_length": config.image_length,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": tower.feature_layer,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": {"architectures": ["LlamaForCausalLM"], **llama_sizes_to_hf(config)},
        "vision_config": clip_sizes_to_hf(tower),
    }


def _original_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    _check(data, {"mm_vision_select_feature": "patch", "tune_mm_mlp_adapter": False})
    kind = data.get("mm_projector_type", "linear")
    tower = data.get("vision_config") or KNOWN_TOWERS.get(data["mm_vision_tower"])
    if tower is None:
        raise ConfigError(
            f"the sizes of the tower {data['mm_vision_tower']!r} are not known: its config.json is needed"
        )
    layer = data.get("mm_vision_select_layer", -2)
    sizes = _with_tower(llama_sizes(data), {**clip_sizes(tower), "feature_layer": layer})
    marked = bool(data.get("mm_use_im_start_end", False))
    pad = data.get("image_aspect_ratio", "square") == "pad"
    marks = {"image_start_id": 32001, "image_end_id": 32002} if marked else {}
    style = "llava_v0" if marked else "llava_v1"
    return {**sizes, "projector": kind, "square_padding": pad, "text_processor_version": style, **marks}


FORM = HFForm(
    architecture="LlavaForConditionalGeneration",
    model_class="LLaVAModel",
    config_class=LLaVAConfig,
    keys=KEYS,
    versions={},
    sizes_to_sat=_sizes_to_sat,
    sizes_to_hf=_sizes_to_hf,
    canonical=canonical,
    in_memory=in_memory,
    layout="transformers",
    processor=hf_processor,
)
ORIGINAL = HFForm(
    architecture="LlavaLlamaForCausalLM",
    model_class="LLaVAModel",
    config_class=LLaVAConfig,
    keys=KEYS,
    versions={},
    sizes_to_sat=_original_to_sat,
    canonical=canonical,
    telling=lambda data: not has_intern_vit(data),
    apart=Apart("mm_vision_tower", "vision_config", OWN_TOWER, "LLaVA's vision tower (mm_vision_tower)"),
)
"""`liuhaotian/llava-v1.5-7b` and its like: LLaMA with the projector; the tower may lie apart."""

to_sat, to_hf = KEYS.to_sat, KEYS.to_hf
