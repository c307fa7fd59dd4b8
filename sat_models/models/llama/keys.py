"""A plain LLaMA between SAT's names and those of transformers' `LlamaForCausalLM`."""

from __future__ import annotations

import re

from sat_models.config import LLaMAConfig
from sat_models.models.common.hf_form import HFForm, KeyTable
from sat_models.models.common.llama_keys import ROTARY_TABLE, llama_rows, llama_sizes, llama_sizes_to_hf

KEYS = KeyTable(llama_rows("model", "lm_head"), left_out=(ROTARY_TABLE,))
_NO_WEIGHT = re.compile(r"\.rotary_emb\.inv_freq$")  # in old files


def canonical(name: str) -> str | None:
    """A name in the files; None for tables, which follow from the sizes."""
    return None if _NO_WEIGHT.search(name) else name


FORM = HFForm(
    architecture="LlamaForCausalLM",
    model_class="LLaMAModel",
    config_class=LLaMAConfig,
    keys=KEYS,
    versions={},
    sizes_to_sat=llama_sizes,
    sizes_to_hf=llama_sizes_to_hf,
    canonical=canonical,
    layout="transformers",
)
