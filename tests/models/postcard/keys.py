"""Its names in Hugging Face folders. They call themselves plain LLaMAs; only the stamp tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from postcard.config import PostcardConfig
from sat_models.models.common.hf_form import HFForm, KeyTable
from sat_models.models.common.llama_keys import ROTARY_TABLE, llama_rows, llama_sizes, llama_sizes_to_hf

KEYS = KeyTable(
    {
        **llama_rows("model", "lm_head"),
        "mixins.eva.patches.weight": "postcard.patches.weight",
        "mixins.eva.patches.bias": "postcard.patches.bias",
        "mixins.eva.stamp": "postcard.stamp",
    },
    left_out=(ROTARY_TABLE,),
)


def _sizes_to_sat(data: Mapping[str, Any]) -> dict[str, Any]:
    tower = data["postcard"]["tower"]
    length = (tower["image_size"][0] // tower["patch_size"]) ** 2
    sizes = {"eva_args": tower, "image_length": length, "stamp_value": data["postcard"]["stamp_value"]}
    return {**llama_sizes(data), **sizes}


def _sizes_to_hf(config: PostcardConfig) -> dict[str, Any]:
    own = {"tower": config.eva_args.to_dict(), "stamp_value": config.stamp_value}
    return {**llama_sizes_to_hf(config), "model_type": "postcard", "postcard": own}


FORM = HFForm(
    architecture="PostcardForCausalLM",
    model_class="PostcardModel",
    config_class=PostcardConfig,
    keys=KEYS,
    versions={},
    sizes_to_sat=_sizes_to_sat,
    sizes_to_hf=_sizes_to_hf,
)
