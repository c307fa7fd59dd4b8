"""VisualGLM's positions and sizes; its parity with the original is in tests/test_parity.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sat_models.config import ImagePlan, read_json
from sat_models.errors import ConfigError
from sat_models.models.visualglm.config import ChatGLMConfig, VisualGLMConfig
from sat_models.processing.layout import layout_training
from sat_models.zoo import load_pretrained
from sat_models.zoo.vlm import VLM

MINI = Path(__file__).resolve().parents[1] / "golden" / "visualglm-mini"
GOLDEN = load_file(MINI / "reference.safetensors")


@pytest.fixture(scope="module")
def vlm() -> VLM:
    """The miniature, through the front door."""
    return load_pretrained(MINI, device="cpu", dtype="float32")


def test_positions_are_found_from_the_ids(vlm: VLM) -> None:
    ids, key = GOLDEN["case2.input_ids"][None], "case2"
    assert torch.equal(vlm.model.default_positions(ids)[0], GOLDEN[f"{key}.position_ids"])
    with pytest.raises(ValueError, match=r"no <sop> \(504\)"):
        vlm.model(torch.tensor([[5, 6, 7]]))
    with pytest.raises(ValueError, match=r"no \[gMASK\] \(501\) or \[MASK\] \(500\)"):
        vlm.model(torch.tensor([[5, 6, 504]]))
    assert vlm.model.default_positions(torch.tensor([[5, 500, 6, 504, 9]])).tolist() == [
        [[0, 1, 2, 1, 1], [0, 0, 0, 1, 2]]
    ]


def test_a_training_sample(vlm: VLM) -> None:
    form, eos = vlm.config.sequence_form, vlm.config.eos_token_id
    image = ImagePlan(length=4, canvas=(8, 8))
    layout = layout_training([[5, 6], image, [7, 8]], [20, 21], bos_id=0, eos_id=eos, max_length=40, form=form)
    assert layout.input_ids.tolist() == [5, 6, 3, 3, 3, 3, 7, 8, 501, 504, 20, 21, eos]
    assert layout.labels.tolist() == [-100] * 10 + [20, 21, eos]
    assert layout.position_ids.tolist() == [[*range(9), 8, 8, 8, 8], [0] * 9 + [1, 2, 3, 4]]
    assert layout.attention_mask[0].tolist() == [1] * 9 + [0] * 4
    assert layout.attention_mask[10].tolist() == [1] * 11 + [0] * 2


def test_sizes_that_contradict_each_other_are_refused() -> None:
    data = read_json(MINI / "model_config.json")
    assert VisualGLMConfig.from_dict(data).to_dict()["qformer_args"]["proj_size"] == 64
    for change, message in (
        ({"image_length": 31}, "the Q-Former has 32 queries"),
        ({"gmask_token_id": 512}, "gmask_token_id = 512 is outside"),
        ({"layernorm_order": "pre"}, "layernorm_order = 'pre' is not supported"),
        ({"qformer_args": {**data["qformer_args"], "cross_attn_hidden_size": 40}}, "the tower .eva_args. is 48 wide"),
        ({"qformer_args": {**data["qformer_args"], "proj_size": 60}}, "proj_size is 60"),
        ({"qformer_args": {**data["qformer_args"], "is_decoder": [True]}}, "qformer_args.is_decoder must say for each"),
        ({"eva_args": {**data["eva_args"], "layernorm_order": "post"}}, "this tower has 'pre'"),
    ):
        with pytest.raises(ConfigError, match=message):
            VisualGLMConfig.from_dict({**data, **change})
    with pytest.raises(ConfigError, match="model-parallel size 3 does not divide num_attention_heads = 4"):
        ChatGLMConfig.from_dict(
            {key: data[key] for key in data if key.endswith(("_id", "_size")) or key.startswith("num")}
            | {"max_sequence_length": 9}
        ).check_model_parallel(3)
