"""Fewer key/value heads, another rotary base, width of heads, partial and interleaved rotary, biases of q, k and v:
each against transformers, through every way to decode."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import PEERS, SIZES, our_model, their_model
from torch import Tensor

from mixins.heads import HeadLayout, heads_of_rank
from mixins.kv_cache import kv_cache
from mixins.packed_attention import PackedLanesMixin
from mixins.ptuning import add_ptuning
from sat_models import runtime
from sat_models.checkpoint.huggingface import JoinedWeights
from sat_models.checkpoint.reshard import split_rules
from sat_models.config import read_json
from sat_models.errors import ConfigError
from sat_models.generation.steps.choose import Stepper
from sat_models.generation.steps.flat import TokenStep
from sat_models.generation.steps.kernels import KernelStep
from sat_models.generation.steps.native import load
from sat_models.models.build import build_model, make_config
from sat_models.models.common.hf_form import KeyTable
from sat_models.models.common.llama import LLaMAModel
from sat_models.models.common.llama_keys import llama_rows

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
CLOSE = {"atol": 2e-5, "rtol": 0}
WAYS = ["hooks", "TokenStep", *(["KernelStep"] if load() is not None else [])]
PROMPT = torch.tensor([[1, 5, 9, 33, 7, 150, 2, 84], [1, 90, 91, 3, 60, 4, 8, 12]])


@pytest.fixture(scope="module", params=PEERS)
def pair(request: pytest.FixtureRequest) -> tuple[Any, LLaMAModel]:
    """A peer, and ours with its weights."""
    runtime.init_model_parallel(1)
    theirs = their_model(request.param)
    return theirs, our_model(request.param, theirs)


def config_of(**keys: Any) -> Any:
    return make_config({"model_class": "LLaMAModel", **SIZES, **keys})


def test_the_hooks_equal_transformers(pair: tuple[Any, LLaMAModel]) -> None:
    theirs, ours = pair
    with torch.no_grad():
        expected = theirs(PROMPT).logits
        torch.testing.assert_close(ours(PROMPT)[0], expected, **CLOSE)
    mask = torch.ones(8, 8, dtype=torch.long).tril()[None, None]
    torch.testing.assert_close(ours(PROMPT, attention_mask=mask)[0], expected, **CLOSE)


def decoded(model: LLaMAModel, way: str, *, rows: int = 1, masked: bool = False) -> Tensor:
    """Logits [rows, 5, V] of the last five tokens of the prompt, given one by one."""
    prompt, steps = PROMPT[:rows], []
    with torch.no_grad(), kv_cache(model, 12) as cache:
        model(prompt[:, :3])
        cache.advance(3)
        stepper = Stepper(model, cache)
        flat = TokenStep.of(model)
        stepper._flat = {"hooks": None, "TokenStep": flat, "KernelStep": KernelStep.of(flat)}[way]
        assert stepper.way == way
        for place in range(3, 8):
            mask = torch.ones(rows, 1, 1, place + 1, dtype=torch.bool) if masked else None
            steps.append(stepper(prompt[:, place], torch.tensor([[place]] * rows), mask, max_position=place))
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_decode_equals_transformers(
    pair: tuple[Any, LLaMAModel], way: str, rows: int, masked: bool
) -> None:
    theirs, ours = pair
    with torch.no_grad():
        expected = theirs(PROMPT).logits[:rows, 3:]
    torch.testing.assert_close(decoded(ours, way, rows=rows, masked=masked), expected, **CLOSE)


@pytest.mark.parametrize("way", WAYS[1:])
def test_bf16_is_that_of_the_hooks(pair: tuple[Any, LLaMAModel], way: str) -> None:
    model = copy.deepcopy(pair[1]).bfloat16()
    torch.testing.assert_close(decoded(model, way).float(), decoded(model, "hooks").float(), atol=0.1, rtol=0.05)


def test_the_cache_holds_the_key_value_heads_alone(pair: tuple[Any, LLaMAModel]) -> None:
    ours = pair[1]
    with torch.no_grad(), kv_cache(ours, 12) as cache:
        ours(PROMPT)
    assert cache.store.keys[0].shape[1] == 2


def test_a_prefix_and_lanes_know_the_key_value_heads() -> None:
    """Lanes of one sequence are the sequence; a prefix has as many keys as the layers."""
    runtime.init_model_parallel(1)
    model = our_model("llama", their_model("llama"))
    with torch.no_grad():
        expected = model(PROMPT[:1])[0]
        model.add_mixin("packed", PackedLanesMixin())
        lane = torch.ones(1, 1, 5, 8, dtype=torch.bool).tril(diagonal=3)
        torch.testing.assert_close(model(PROMPT[:1], lane_mask=lane)[0], expected, **CLOSE)
        model.del_mixin("packed")
        prefix = add_ptuning(model, 3)
        assert prefix.prefix[0].shape == (2, 2, 3, 32)
        assert not torch.allclose(model(PROMPT[:1])[0], expected)


def test_gradients_are_transformers() -> None:
    """Training runs the same heads: the gradient of the joined weight is theirs of q, k and v."""
    runtime.init_model_parallel(1)
    theirs = their_model("llama")
    ours = our_model("llama", theirs).requires_grad_(True)
    for logits in (theirs(PROMPT).logits, ours(PROMPT)[0]):
        logits.float().log_softmax(-1)[:, :-1].gather(-1, PROMPT[:, 1:, None]).mean().backward()
    attention = theirs.model.layers[0].self_attn
    expected = torch.cat([getattr(attention, f"{x}_proj").weight.grad for x in "qkv"])
    torch.testing.assert_close(ours.transformer.layers[0].attention.query_key_value.weight.grad, expected, **CLOSE)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_the_key_table_moves_the_weights_as_by_hand(name: str) -> None:
    runtime.init_model_parallel(1)
    theirs = their_model(name)
    ours = our_model(name, theirs)
    keys = KeyTable(llama_rows("model", "lm_head", qkv_bias=ours.config.qkv_bias)).of_heads(ours.config.heads)
    weights = JoinedWeights(keys)
    for key, value in theirs.state_dict().items():
        assert weights.put(keys.place(key), value)
    expected = ours.state_dict()
    del expected["mixins.rotary.rotary_emb.inv_freq"]
    assert weights.keys() == expected.keys() and not weights.incomplete()
    for key, value in expected.items():
        assert weights[key].equal(value), key
        assert all(keys.hf_value(hf, value).equal(theirs.state_dict()[hf]) for hf in keys.all_hf(key, 2))


@torch.no_grad()
def test_a_visual_expert_has_the_same_heads_and_biases_of_its_own() -> None:
    """CogVLM2's attention. Experts with the language's weights change nothing until their biases do."""
    runtime.init_model_parallel(1)
    data = read_json(GOLDEN / "cogvlm-mini" / "model_config.json")
    keys = {"num_attention_heads": 4, "num_kv_heads": 2, "head_dim": 24, "rope_theta": 5e5, "vision_qkv_bias": True}
    torch.manual_seed(0)
    model = build_model(make_config({**data, **keys}), device="cpu").eval()
    attention, layers = model.get_mixin("rotary"), model.transformer.layers
    for layer, qkv, dense in zip(
        layers, attention.vision_query_key_value_list, attention.vision_dense_list, strict=True
    ):
        assert qkv.bias.shape == (8 * 24,) and layer.attention.query_key_value.bias is None
        qkv.weight.copy_(layer.attention.query_key_value.weight)
        dense.weight.copy_(layer.attention.dense.weight)
    mlp = model.get_mixin("mlp")
    for number, layer in enumerate(layers):
        mlp.vision_dense_h_to_4h_list[number].weight.copy_(layer.mlp.dense_h_to_4h.weight)
        mlp.vision_dense_4h_to_h_list[number].weight.copy_(layer.mlp.dense_4h_to_h.weight)
        mlp.vision_gate_proj[number].weight.copy_(mlp.gate_proj[number].weight)
    plain, mask = model(PROMPT)[0], torch.tensor([[0, 1, 1, 1, 0, 0, 0, 0]] * 2)
    torch.testing.assert_close(model(PROMPT, vision_expert_mask=mask)[0], plain, **CLOSE)
    for qkv in attention.vision_query_key_value_list:
        qkv.bias.normal_(generator=torch.Generator().manual_seed(1))
    found = model(PROMPT, vision_expert_mask=mask)[0]
    assert found[:, 0].allclose(plain[:, 0], atol=1e-5) and not found[:, 1:].allclose(plain[:, 1:], atol=1e-3)
    for way in WAYS:
        torch.testing.assert_close(decoded(model, way, rows=2), plain[:, 3:], **CLOSE)
    rule = split_rules(model)["mixins.rotary.vision_query_key_value_list.0.bias"]
    assert (rule.dim, rule.parts) == (0, (2, 1, 1))


def test_heads_of_todays_files_are_as_they_were() -> None:
    config = config_of()
    assert (config.heads.num_kv_heads, config.heads.head_dim, config.heads.rope_theta) == (4, 16, 10000.0)
    assert config.heads.stride == 3 and config.heads.rotary_dim == 16
    new = {"num_kv_heads", "head_dim", "rope_theta", "rotary_dim", "rotary_interleaved", "qkv_bias"}
    assert not new & config.to_dict().keys()


def test_the_new_keys_come_back_from_a_file() -> None:
    keys = {"num_kv_heads": 2, "head_dim": 24, "rope_theta": 5e5, "rotary_dim": 12, "rotary_interleaved": True}
    written = json.loads(json.dumps(config_of(**keys, qkv_bias=True).to_dict()))
    assert written.items() >= {**keys, "qkv_bias": True}.items()
    assert make_config(written).heads == config_of(**keys, qkv_bias=True).heads


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"num_kv_heads": 3}, r"num_attention_heads = 4 is not divisible by 3 \(num_kv_heads"),
        ({"num_kv_heads": 0}, "num_kv_heads must be a positive integer"),
        ({"head_dim": 15}, r"what turns of a head = 15 is not divisible by 2"),
        ({"rotary_dim": 18}, "rotary_dim = 18 is more than a head has, 16"),
        ({"rope_theta": 0}, "rope_theta must be a number above 0"),
        ({"rope_theta": "much"}, "rope_theta must be a number above 0"),
        ({"qkv_bias": 1}, "qkv_bias must be true or false"),
        ({"hidden_size": 66}, "hidden_size = 66 is not divisible by 4"),
    ],
)
def test_heads_that_cannot_be_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**keys)


def test_processes_must_divide_the_heads_of_queries() -> None:
    for size in (2, 4):
        config_of(num_kv_heads=2).check_model_parallel(size)
    with pytest.raises(ConfigError, match="model-parallel size 8 does not divide num_attention_heads = 4"):
        config_of(num_kv_heads=2).check_model_parallel(8)


@pytest.mark.parametrize("queries", [1, 2, 3, 4, 6, 8, 12])
def test_a_rank_has_the_keys_of_its_queries(queries: int) -> None:
    for groups, size in itertools.product(range(1, queries + 1), repeat=2):
        if queries % groups or queries % size:
            continue
        heads = HeadLayout(num_heads=queries, num_kv_heads=groups, head_dim=2, rotary_dim=2)
        for rank in range(size):
            part, own = heads.on_rank(size), heads_of_rank(groups, rank, size)
            assert part.num_kv_heads == len(own) and part.num_heads % part.num_kv_heads == 0
            for place, query in enumerate(heads_of_rank(queries, rank, size)):
                assert own[place // part.group] == query // heads.group


def test_a_head_need_not_fit_the_width() -> None:
    runtime.init_model_parallel(1)
    model = build_model(config_of(hidden_size=66, head_dim=24, num_kv_heads=2))
    attention = model.transformer.layers[0].attention
    assert attention.query_key_value.weight.shape == (8 * 24, 66) and attention.dense.weight.shape == (66, 4 * 24)
