"""Splitting, merging, and any stored size to any running size."""

from __future__ import annotations

import itertools

import pytest
import torch

from sat_models.checkpoint.reshard import (
    REPLICATED,
    RankPart,
    SplitRule,
    merge,
    read_shard,
    slice_for_rank,
    split_rules,
)
from sat_models.errors import CheckpointError

QKV = SplitRule(0, (1, 1, 1))
RULES = [
    REPLICATED, SplitRule(0), SplitRule(1), SplitRule(0, (1, 1)), QKV, SplitRule(0, (4, 1, 1)),
    *(SplitRule(dim, (12 // heads, 1, 1), heads=heads) for dim, heads in ((0, 1), (0, 2), (0, 4), (1, 2), (0, 6))),
    SplitRule(0, heads=3),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("transformer.layers.0.attention.query_key_value.weight", QKV),
        ("transformer.layers.0.attention.dense.weight", SplitRule(1)),
        ("transformer.layers.0.mlp.dense_h_to_4h.weight", SplitRule(0)),
        ("transformer.word_embeddings.weight", REPLICATED),  # below 1000 words SAT keeps it whole
        ("transformer.final_layernorm.weight", REPLICATED),
        ("mixins.rotary.vision_query_key_value_list.1.weight", QKV),
        ("mixins.rotary.vision_dense_list.1.weight", SplitRule(1)),
        ("mixins.rotary.rotary_emb.inv_freq", REPLICATED),
        ("mixins.mlp.vision_gate_proj.2.weight", SplitRule(0)),
        ("mixins.lm.lm_head.weight", SplitRule(0, (1,), 488)),  # whole where the words cannot be shared
        ("mixins.eva.boi", REPLICATED),
        ("mixins.eva.linear_proj.dense_h_to_4h.weight", REPLICATED),
        ("mixins.eva.vit_model.transformer.layers.0.attention.query_key_value.bias", SplitRule(0, (1, 1, 1), 4)),
        ("mixins.eva.vit_model.transformer.layers.0.attention.dense.bias", REPLICATED),
        ("mixins.eva.vit_model.transformer.layers.0.mlp.dense_4h_to_h.weight", SplitRule(1, (1,), 4)),
    ],
)
def test_rules_follow_from_the_layers(meta_model, name, rule):
    assert split_rules(meta_model)[name] == rule


def test_splitting_equals_the_original_loader(meta_model, whole, halves):
    rules = split_rules(meta_model)
    assert rules.keys() == whole.keys()
    for name, rule in rules.items():
        for rank, half in enumerate(halves):
            assert torch.equal(slice_for_rank(whole[name], rule, rank, 2), half[name]), (name, rank)


def test_merging_undoes_the_original_loader(meta_model, whole, halves):
    for name, rule in split_rules(meta_model).items():
        assert torch.equal(merge([half[name] for half in halves], rule), whole[name]), name


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_any_stored_size_to_any_running_size(rule):
    rows, columns = (1680, 16) if rule.heads else (144, 72)
    full = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
    for stored, running in itertools.product((1, 2, 3, 4, 6), repeat=2):
        shards = [slice_for_rank(full, rule, rank, stored) for rank in range(stored)]
        assert torch.equal(merge(shards, rule), full)
        for rank in range(running):
            expected = slice_for_rank(full, rule, rank, running)
            assert torch.equal(read_shard(shards, rule, rank, running), expected), (stored, running, rank)
            part = RankPart(shards, rule, rank, running, full.dtype, "cpu")
            assert part.shape == expected.shape
            for rows in (slice(None), slice(5, 11), slice(1, -1), slice(3, 3)):
                assert torch.equal(part[rows], expected[rows]), (stored, running, rank, rows)


def test_a_slice_is_cast_on_the_way():
    shard = read_shard([torch.ones(4, 2), torch.zeros(4, 2)], SplitRule(0), 1, 4, dtype=torch.bfloat16)
    assert shard.dtype == torch.bfloat16 and shard.tolist() == [[1, 1], [1, 1]]


def test_what_cannot_be_divided_says_so():
    with pytest.raises(CheckpointError, match="multiple of 12"):
        slice_for_rank(torch.zeros(9, 2), QKV, 0, 4)


@pytest.mark.parametrize("rule", [SplitRule(0, (1, 1, 1), 3), SplitRule(1, (1,), 3)])
@pytest.mark.parametrize(("stored", "size"), list(itertools.product((1, 2, 3, 4), repeat=2)))
def test_what_a_number_of_ranks_does_not_divide_is_whole_on_each(rule: SplitRule, stored: int, size: int) -> None:
    whole = torch.arange(18 * 6, dtype=torch.float32).view(18, 6)
    parts = [read_shard([whole], rule, rank, stored) for rank in range(stored)]
    assert all(part.equal(whole) for part in parts) == (stored in (1, 2, 4))
    again = [read_shard(parts, rule, rank, size) for rank in range(size)]
    assert all(one.equal(read_shard([whole], rule, rank, size)) for rank, one in enumerate(again))
    assert rule.shard_shape(rule.full_shape(parts[0].shape, stored), size) == tuple(again[0].shape)
