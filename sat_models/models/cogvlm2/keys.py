"""CogVLM2 between SAT's names and those of its release (THUDM/cogvlm2-llama3-chat-19B): CogVLM's, and three more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sat_models.models.cogvlm import keys as cogvlm_keys
from sat_models.models.cogvlm2.config import CogVLM2Config, tokens_of
from sat_models.models.common.hf_form import HFForm

KEYS = cogvlm_keys.KEYS.extended(
    {
        "mixins.rotary.vision_query_key_value_list.{i}.bias": (
            "model.layers.{i}.self_attn.vision_expert_query_key_value.bias"
        ),
        "mixins.eva.conv.weight": "model.vision.conv.weight",
        "mixins.eva.conv.bias": "model.vision.conv.bias",
    }
)
KV_HEADS = "num_multi_query_heads"
"""Its `config.json` has this key; CogVLM's, which names the same class, does not."""


def _sizes_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary base stands in no file: it is Llama 3's, the default of the typed config."""
    tower = data["vision_config"]
    own = {"image_length": tokens_of(tower["image_size"], tower["patch_size"]), "num_kv_heads": data[KV_HEADS]}
    return {**cogvlm_keys.sizes_to_sat(data), **own}


def _sizes_to_hf(config: CogVLM2Config) -> dict[str, Any]:
    return {**cogvlm_keys.sizes_to_hf(config), KV_HEADS: config.heads.num_kv_heads}


FORM = HFForm(
    architecture="CogVLMForCausalLM",
    model_class="CogVLM2Model",
    config_class=CogVLM2Config,
    keys=KEYS,
    versions={"base": "base", "chat": "chat_old", "vqa": "cogvlm2_vqa"},
    sizes_to_sat=_sizes_to_sat,
    sizes_to_hf=_sizes_to_hf,
    telling=lambda data: KV_HEADS in data,
)
