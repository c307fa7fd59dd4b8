"""InternVL's sizes: `config.json` of its two layouts, and SAT's.

Defaults are those of the classes whose keys they are (`configuration_internvl_chat.py`, `configuration_intern_vit.py`
of its repository at 2410d1d; transformers' `InternVLConfig`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_models.config import InternViTConfig
from sat_models.errors import ConfigError
from sat_models.models.common.hf_form import ADDED_TOKENS
from sat_models.models.internvl.config import InternVLConfig
from sat_models.models.internvl.languages import LANGUAGES, language_of
from sat_models.models.internvl.prompts import END, ROLE_TOKENS, STYLES

IMAGE_TOKEN = "<IMG_CONTEXT>"
QK_EPSILON = 1e-6
"""Of transformers' norms of queries and keys, whatever their config says."""

_BOTH = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_attention_heads",
    "inner_hidden_size": "intermediate_size",
    "layernorm_epsilon": "layer_norm_eps",
    "in_channels": "num_channels",
}
"""Keys of a tower that the layouts share."""
_SIX_B = {
    "num_hidden_layers": 48, "hidden_size": 3200, "num_attention_heads": 25, "intermediate_size": 12800,
    "layer_norm_eps": 1e-6, "num_channels": 3,
}  # fmt: skip
_300M = {**_SIX_B, "num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096}
_NORMS = {"rms_norm": True, "layer_norm": False}


def from_original(data: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a release. Raises ConfigError for a language model or a template that the zoo does not have."""
    vision, template = data["vision_config"], data["template"]
    if template not in STYLES:
        raise ConfigError(f"template {template!r} of InternVL is unknown here; allowed: {', '.join(STYLES)}")
    tower = {
        "patch_size": vision.get("patch_size", 14),
        "qk_norm": vision.get("qk_normalization", True),
        "qkv_bias": vision.get("qkv_bias", False),
        **_tower(vision, _SIX_B, "rms_norm", data.get("select_layer", -1)),
    }
    table = vision.get("image_size", 224)
    return {
        **_language(data["llm_config"], data, template),
        **_with_side(tower, data.get("force_image_size") or table, table, data.get("downsample_ratio", 0.5)),
        "pixel_shuffle": data.get("ps_version", "v1"),
        "dynamic_images": data.get("dynamic_image_size", False),
        "least_tiles": data.get("min_dynamic_patch", 1),
        "most_tiles": data.get("max_dynamic_patch", 6),
        "overview": data.get("use_thumbnail", False),
        "square_padding": data.get("pad2square", False),
        "system_message": data.get("system_message"),
    }


def to_original(config: InternVLConfig) -> dict[str, Any]:
    """The inverse."""
    tower, language = config.eva_args, LANGUAGES[config.language]
    if tower.qk_norm and (tower.qk_epsilon or tower.layernorm_epsilon) != tower.layernorm_epsilon:
        raise ConfigError(
            f"InternVL's own layout norms queries and keys with the epsilon of the other norms; this tower has "
            f"{tower.qk_epsilon:g} beside {tower.layernorm_epsilon:g}; write the layout 'transformers'"
        )
    return {
        "model_type": "internvl_chat",
        "downsample_ratio": 1 / config.joined,
        "dynamic_image_size": config.dynamic_images,
        "force_image_size": config.image_size,
        "llm_config": {"architectures": [language.architecture], **language.to_hf(config)},
        "max_dynamic_patch": config.most_tiles,
        "min_dynamic_patch": config.least_tiles,
        "pad2square": config.square_padding,
        "ps_version": config.pixel_shuffle,
        "select_layer": tower.feature_layer,
        "template": _template(config),
        **({} if config.system_message is None else {"system_message": config.system_message}),
        "use_thumbnail": config.overview,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            **_tower_to_hf(tower),
            "image_size": tower.table_size or config.image_size,
            "patch_size": tower.patch_size,
            "qk_normalization": tower.qk_norm,
            "qkv_bias": tower.qkv_bias,
        },
    }


def from_transformers(data: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a folder in transformers' layout. What that cannot say is the zoo's default, or stands in our own key.

    Raises as `from_original`.
    """
    for name, allowed in (("vision_feature_select_strategy", "default"), ("projector_hidden_act", "gelu")):
        if data.get(name, allowed) != allowed:
            raise ConfigError(f"{name} = {data[name]!r} is not supported; {allowed!r} is what InternVL has")
    vision = data["vision_config"]
    tower = {
        "patch_size": _side(vision.get("patch_size", 14)),
        "qk_norm": vision.get("use_qk_norm", False),
        "qkv_bias": vision.get("attention_bias", False),
        **_tower(vision, _300M, "layer_norm", data.get("vision_feature_layer", -1)),
    }
    if tower["qk_norm"] and tower["layernorm_epsilon"] != QK_EPSILON:
        tower["qk_epsilon"] = QK_EPSILON
    side = _side(vision.get("image_size", 448))
    sizes = _language(data["text_config"], data, InternVLConfig.DEFAULT_VERSION)
    return {
        "image_token_id": data["image_token_id"],
        **sizes,
        **_with_side(tower, side, side, data.get("downsample_ratio", 0.5)),
    }


def to_transformers(config: InternVLConfig) -> dict[str, Any]:
    """The inverse. Raises ConfigError for what that layout does not have."""
    tower = config.eva_args
    if config.pixel_shuffle != "v2":
        raise ConfigError(
            f"pixel shuffle {config.pixel_shuffle} puts the tokens of an image in column by column, and transformers' "
            "InternVL has row by row only (v2), so that it would answer from other tokens; write the layout 'original' "
            "(--layout original)"
        )
    if tower.qk_norm and (epsilon := tower.qk_epsilon or tower.layernorm_epsilon) != QK_EPSILON:
        raise ConfigError(
            f"transformers' InternVL norms queries and keys with epsilon {QK_EPSILON:g}, this tower with "
            f"{epsilon:g}; write the layout 'original' (--layout original)"
        )
    if config.image_token_id is None:
        raise ConfigError(
            f"the id of {IMAGE_TOKEN} is not known, and transformers' layout needs it: put the tokenizer's files "
            "beside the weights"
        )
    language = LANGUAGES[LANGUAGES[config.language].in_transformers]
    table = tower.table_size or config.image_size
    return {
        "model_type": "internvl",
        "image_token_id": config.image_token_id,
        "image_seq_length": config.image_length,
        "downsample_ratio": 1 / config.joined,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": tower.feature_layer,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": False,
        "text_config": {"architectures": [language.architecture], **language.to_hf(config)},
        "vision_config": {
            "model_type": "internvl_vision",
            **_tower_to_hf(tower),
            "image_size": [table, table],
            "patch_size": [tower.patch_size, tower.patch_size],
            "use_qk_norm": tower.qk_norm,
            "attention_bias": tower.qkv_bias,
            "use_absolute_position_embeddings": True,
        },
    }


def _language(language: Mapping[str, Any], data: Mapping[str, Any], template: str) -> dict[str, Any]:
    """Sizes of the language model, with what the tokenizer's files say. Its head is never tied to its embeddings."""
    name, tokens = language_of(language), data.get(ADDED_TOKENS, {})
    sizes = LANGUAGES[name].to_sat({**language, "tie_word_embeddings": False})
    found = {"language": name, **sizes, "text_processor_version": template}
    if IMAGE_TOKEN in tokens:
        found["image_token_id"] = tokens[IMAGE_TOKEN]
    if template in ROLE_TOKENS and END in tokens:
        found["eos_token_id"] = tokens[END]
    return found


def _template(config: InternVLConfig) -> str:
    version = config.text_processor_version
    return version if version in STYLES else config.DEFAULT_VERSION


def _tower(data: Mapping[str, Any], defaults: Mapping[str, Any], norm: str, layer: int) -> dict[str, Any]:
    """Sizes of a tower, under the keys that the layouts share."""
    kind = data.get("norm_type", norm)
    if kind not in _NORMS:
        raise ConfigError(f"vision_config.norm_type {kind!r} is not supported; allowed: {', '.join(_NORMS)}")
    if data.get("hidden_act", "gelu") != "gelu":
        raise ConfigError(f"vision_config.hidden_act {data['hidden_act']!r} is not supported; 'gelu' is")
    sizes = {sat: data.get(hf, defaults[hf]) for sat, hf in _BOTH.items()}
    return {**sizes, "rms_norm": _NORMS[kind], "feature_layer": layer}


def _tower_to_hf(tower: InternViTConfig) -> dict[str, Any]:
    norms = {flag: name for name, flag in _NORMS.items()}
    sizes = {hf: getattr(tower, sat) for sat, hf in _BOTH.items()}
    return {**sizes, "norm_type": norms[tower.rms_norm], "hidden_act": "gelu"}


def _with_side(tower: dict[str, Any], side: int, table: int, ratio: float) -> dict[str, Any]:
    """The tower for images of a side, and the tokens of a tile.

    Args:
        table: side of the images that the table of positions was made for.
        ratio: `downsample_ratio`.
    """
    joined = round(1 / ratio)
    if abs(joined * ratio - 1) > 1e-6:
        raise ConfigError(f"downsample_ratio = {ratio} is not one part of a whole number, such as 0.5")
    own = {} if table == side else {"table_size": table}
    length = (side // tower["patch_size"] // joined) ** 2
    return {"eva_args": {**tower, "image_size": [side, side], **own}, "image_length": length, "joined": joined}


def _side(size: Any) -> int:
    """One side of what should be a square. Raises ConfigError."""
    sides = size if isinstance(size, (list, tuple)) else [size]
    if len(set(sides)) != 1:
        raise ConfigError(f"image_size or patch_size of the tower is {size}; only squares are supported")
    return sides[0]
