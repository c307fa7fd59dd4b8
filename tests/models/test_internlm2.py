"""InternLM2's names and sizes, which several families are built on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sat_models.config import LLaMAConfig
from sat_models.errors import ConfigError
from sat_models.models.common.hf_form import KeyTable
from sat_models.models.common.internlm2_keys import internlm2_rows, internlm2_sizes, internlm2_sizes_to_hf

SIZES: dict[str, Any] = {
    "hidden_size": 8, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 64, "vocab_size": 32,
    "bias": False, "pad_token_id": 2,
}  # fmt: skip


def config_of(**changes: Any) -> LLaMAConfig:
    return LLaMAConfig.from_dict(internlm2_sizes({**SIZES, **changes}))


def test_wqkv_is_cut_group_by_group_and_put_together_again() -> None:
    keys = KeyTable(internlm2_rows("language_model.model", "language_model.output"), heads=config_of().heads)
    name = "language_model.model.layers.1.attention.wqkv.weight"
    # a row for each head: two groups of two queries, their key and their value
    wqkv = torch.tensor([[0, 0], [1, 0], [9, 0], [10, 0], [2, 0], [3, 0], [11, 0], [12, 0]]).repeat_interleave(2, 0)
    sat = keys.sat_value(keys.place(name), [wqkv])
    assert sat[::2, 0].tolist() == [0, 1, 2, 3, 9, 11, 10, 12]  # queries, keys, values
    assert keys.hf_value(name, sat).equal(wqkv)
    assert keys.to_sat("language_model.model.layers.1.feed_forward.w1.weight") == "mixins.mlp.gate_proj.1.weight"
    assert keys.to_hf("transformer.layers.0.mlp.dense_h_to_4h.weight").endswith("layers.0.feed_forward.w3.weight")


@pytest.mark.parametrize("scaling", [None, {"type": "dynamic", "factor": 2.0}])
def test_sizes_both_ways(scaling: dict | None) -> None:
    config = config_of(rope_scaling=scaling)
    assert (config.heads.num_kv_heads, config.rope_theta, config.layernorm_epsilon) == (2, 1e6, 1e-5)
    assert LLaMAConfig.from_dict(internlm2_sizes(internlm2_sizes_to_hf(config))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [({"bias": True}, "bias = True"), ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear'")],
)
def test_other_forms_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**change)
