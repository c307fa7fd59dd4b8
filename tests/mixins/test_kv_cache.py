"""The key/value cache: the same logits as without, bounded, and gone afterwards whatever happens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mixins.base import ZooModel
from mixins.kv_cache import CACHE_NAME, KVCacheMixin, KVStore, kv_cache
from sat_models.zoo import load_pretrained

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
BY_TOKEN = ("input_ids", "position_ids", "vision_expert_mask", "image_embed_mask")
CLOSE = {"atol": 2e-5, "rtol": 0}


@pytest.fixture(scope="module", params=["cogvlm-mini", "cogagent-mini"])
def name(request: pytest.FixtureRequest) -> str:
    """Each miniature in turn."""
    return request.param


@pytest.fixture(scope="module")
def model(name: str) -> ZooModel:
    return load_pretrained(GOLDEN / name, device="cpu", dtype="float32").model


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def inputs(name: str, batch: int = 1) -> dict[str, Tensor]:
    """The first case `batch` times, with other text in every row."""
    golden = load_file(GOLDEN / name / "reference.safetensors")
    given = {field: golden[f"case0.{field}"].repeat(batch, 1) for field in BY_TOKEN}
    for row in range(1, batch):
        text = given["position_ids"][row] > 3
        given["input_ids"][row, text] = given["input_ids"][row, text].roll(row)
    for field, pixels in {"vision_image": "pixels.vision", "cross_image": "pixels.cross"}.items():
        if pixels in golden:
            given[field] = golden[pixels].repeat(batch, 1, 1, 1)
    return given


def part(given: dict[str, Tensor], start: int, stop: int) -> dict[str, Any]:
    """The arguments for tokens start … stop-1; the picture goes with the part that holds its slots."""
    tokens = {field: given[field][:, start:stop] for field in BY_TOKEN}
    if tokens["image_embed_mask"].any():
        return {**tokens, **{field: value for field, value in given.items() if field.endswith("_image")}}
    return {"input_ids": tokens["input_ids"], "position_ids": tokens["position_ids"]}


def in_parts(model: ZooModel, cache: KVCacheMixin, given: dict[str, Tensor], *cuts: int) -> Tensor:
    """Logits of all tokens, with a forward for each piece between the cuts."""
    edges = [0, *cuts, given["input_ids"].shape[1]]
    logits = []
    for start, stop in itertools.pairwise(edges):
        logits.append(model(**part(given, start, stop))[0])
        cache.advance(stop - start)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("batch", [1, 3])
def test_token_by_token_equals_the_full_forward(model: ZooModel, name: str, batch: int) -> None:
    given = inputs(name, batch)
    image_end, length = int(given["image_embed_mask"][0].nonzero().max()) + 1, given["input_ids"].shape[1]
    with kv_cache(model, length) as cache:
        found = in_parts(model, cache, given, *range(image_end, length))
        assert cache.length == length
    torch.testing.assert_close(found, model(**given)[0], **CLOSE)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("where", ["before the image", "after the image", "both"])
def test_prefill_in_parts_equals_the_full_forward(model: ZooModel, name: str, batch: int, where: str) -> None:
    given = inputs(name, batch)
    slots = given["image_embed_mask"][0].nonzero()
    cuts = {"before the image": [int(slots.min())], "after the image": [int(slots.max()) + 4]}
    cuts["both"] = [*cuts["before the image"], *cuts["after the image"]]
    if "cross_image" in given:  # tokens of a part without the picture would not see it in cross-attention
        where = "after the image"
    with kv_cache(model, 2 * given["input_ids"].shape[1]) as cache:
        found = in_parts(model, cache, given, *cuts[where])
    torch.testing.assert_close(found, model(**given)[0], **CLOSE)


def test_rows_of_different_length_with_a_mask(model: ZooModel, name: str) -> None:
    """A padded row in a batch answers as it does alone."""
    given = inputs(name, 2)
    length = given["input_ids"].shape[1] - 1
    given["position_ids"][1, -1] -= 3  # its next token follows the last one that is no padding
    may_look = torch.ones(2, 1, length, length, dtype=torch.bool).tril()
    may_look[1, :, :, length - 3 : length] = False  # the second row's last three tokens are padding …
    may_look |= torch.eye(length, dtype=torch.bool)  # … which sees itself, so that no row of the mask is empty
    with kv_cache(model, length + 1) as cache:
        model(**part(given, 0, length), attention_mask=may_look)
        cache.advance(length)
        last = torch.cat((may_look[:, :, -1:], torch.ones(2, 1, 1, 1, dtype=torch.bool)), dim=-1)
        last[1, :, :, length - 3 : length] = False
        found = model(**part(given, length, length + 1), attention_mask=last)[0]
    alone = {field: value[1:] for field, value in given.items()}
    for field in BY_TOKEN:
        alone[field] = torch.cat((alone[field][:, : length - 3], alone[field][:, length:]), dim=1)
    torch.testing.assert_close(found[1], model(**alone)[0][0, -1:], **CLOSE)


def test_a_full_cache_says_so_and_keeps_what_it_has(model: ZooModel, name: str) -> None:
    given = inputs(name)
    length = given["input_ids"].shape[1]
    with kv_cache(model, length - 1) as cache:
        with pytest.raises(ValueError, match=f"the cache holds {length - 1} tokens, but {length} are needed"):
            model(**given)
        found = in_parts(model, cache, {k: v[:, : length - 1] if k in BY_TOKEN else v for k, v in given.items()})
        with pytest.raises(ValueError, match=f"but {length} are needed"):
            model(**part(given, length - 1, length))
        assert cache.length == length - 1
    torch.testing.assert_close(found, model(**given)[0][:, :-1], **CLOSE)


def test_truncating_takes_tokens_back(model: ZooModel, name: str) -> None:
    given = inputs(name)
    length = given["input_ids"].shape[1]
    with kv_cache(model, length + 8) as cache:
        expected = in_parts(model, cache, given, length - 3)
        cache.truncate(length - 3)
        other = part(given, length - 3, length)
        model(**{**other, "input_ids": other["input_ids"].flip(1)})
        cache.advance(3)
        cache.truncate(length - 3)
        again = model(**other)[0]
        torch.testing.assert_close(again, expected[:, -3:], **CLOSE)
        cache.truncate(0)
        cache.truncate(0)
        torch.testing.assert_close(in_parts(model, cache, given), expected, **CLOSE)


@pytest.mark.parametrize("to", [-1, 6])
def test_truncating_to_what_is_not_there_is_an_error(to: int) -> None:
    cache = KVCacheMixin(num_layers=1, max_length=8)
    cache.advance(5)
    with pytest.raises(ValueError, match=f"cannot truncate a cache of 5 tokens to {to}"):
        cache.truncate(to)
    assert cache.length == 5


def test_an_exception_inside_leaves_the_model_as_it_was(model: ZooModel, name: str) -> None:
    given = inputs(name)
    before, mixins, hooks = model(**given)[0], list(model.mixins), dict(model.hook_origins)
    with pytest.raises(KeyboardInterrupt), kv_cache(model, 300) as cache:
        in_parts(model, cache, given)
        raise KeyboardInterrupt
    assert (list(model.mixins), dict(model.hook_origins)) == (mixins, hooks)
    assert CACHE_NAME not in model.mixins
    assert torch.equal(model(**given)[0], before)


def test_a_second_cache_at_the_same_time_is_refused_and_the_first_goes_on(model: ZooModel, name: str) -> None:
    given = inputs(name)
    with kv_cache(model, 300) as cache:
        with pytest.raises(KeyError, match="already there"), kv_cache(model, 300):
            pass
        assert model.get_mixin(CACHE_NAME) is cache
        found = in_parts(model, cache, given)
    torch.testing.assert_close(found, model(**given)[0], **CLOSE)


def test_the_cache_holds_no_parameters(model: ZooModel) -> None:
    names = set(model.state_dict())
    with kv_cache(model, 300):
        assert set(model.state_dict()) == names


def filled(rows: int, length: int, max_length: int) -> KVStore:
    """Two layers; the key at column t of row b is 10 b + t + 1, the value its negative."""
    store = KVStore(2, max_length)
    k = (10 * torch.arange(rows)[:, None] + torch.arange(length) + 1.0)[:, None, :, None].repeat(1, 2, 1, 3)
    for layer in range(2):
        store.append(layer, k, -k)
    store.advance(length)
    return store


def columns(store: KVStore, row: int) -> list[float]:
    """The keys of a row, after a look at whether heads, layers and values agree."""
    keys, values = store.keys[0][row, :, : store.length], store.values[1][row, :, : store.length]
    assert torch.equal(keys, -values)
    assert (keys == keys[:1, :, :1]).all()
    return keys[0, :, 0].tolist()


def test_a_store_grows_and_shrinks_without_losing_anything() -> None:
    store = filled(2, 3, 4)
    store.resize(3, 8)
    assert store.max_length == 8
    assert [columns(store, row) for row in range(3)] == [[1, 2, 3], [11, 12, 13], [0, 0, 0]]
    assert not store.keys[0][:, :, 3:].any(), "what is masked out must be a number"
    store.resize(1, 5)
    assert columns(store, 0) == [1, 2, 3]
    assert store.keys[1].shape == (1, 2, 5, 3)


def test_a_store_can_be_shifted() -> None:
    store = filled(2, 3, 6)
    store.shift(2)
    assert (store.length, columns(store, 1)) == (5, [0, 0, 11, 12, 13])
    store.shift(-3)
    assert (store.length, columns(store, 1)) == (2, [12, 13])
    with pytest.raises(ValueError, match="cannot shift 2 tokens by 5 in a cache of 6"):
        store.shift(5)


def test_rows_come_and_go() -> None:
    store = KVStore(2, 8)
    store.length = 4
    source = filled(3, 4, 4)
    source.cross = [(torch.arange(3.0).view(3, 1, 1, 1), -torch.arange(3.0).view(3, 1, 1, 1)), None]
    store.resize(1, 8)
    for slot, (row, length) in enumerate([(0, 4), (1, 2), (2, 3)]):
        store.resize(slot + 1, 8)
        store.copy_row(slot, source, row, length)
    assert [columns(store, row) for row in range(3)] == [[1, 2, 3, 4], [0, 0, 11, 12], [0, 21, 22, 23]]
    assert store.cross[0][0].flatten().tolist() == [0, 1, 2] and store.cross[1] is None
    store.drop_row(0, 2)
    assert [columns(store, row) for row in range(2)] == [[0, 21, 22, 23], [0, 0, 11, 12]]
    assert store.cross[0][1].flatten().tolist() == [-2, -1]
    store.drop_row(1, 1)
    assert columns(store, 0) == [0, 21, 22, 23]
    assert store.cross[0][0].flatten().tolist() == [2]


def test_the_store_can_be_exchanged_between_forwards(model: ZooModel, name: str) -> None:
    given = inputs(name)
    length = given["input_ids"].shape[1]
    with kv_cache(model, length) as cache:
        expected = in_parts(model, cache, given, length - 2)
        cache.store = KVStore(len(model.transformer.layers), length)
        assert cache.length == 0 and cache.cross_memory is None
        torch.testing.assert_close(in_parts(model, cache, given, length - 2), expected, **CLOSE)


def test_the_tokens_of_a_row_go_into_a_store_of_their_own() -> None:
    store = KVStore(2, 6)
    for layer in range(2):
        store.append(layer, torch.randn(3, 2, 5, 4), torch.randn(3, 2, 5, 4))
    store.cross[1] = (torch.randn(3, 2, 7, 4), torch.randn(3, 2, 7, 4))
    store.advance(5)
    taken = store.extract(1, 2, 5, max_length=4)
    assert (taken.length, taken.max_length, taken.cross[0]) == (3, 4, None)
    for layer in range(2):
        assert torch.equal(taken.keys[layer][:, :, :3], store.keys[layer][1:2, :, 2:5])
        assert torch.equal(taken.values[layer][:, :, :3], store.values[layer][1:2, :, 2:5])
        assert not taken.keys[layer][:, :, 3:].any()
    assert torch.equal(taken.cross[1][0], store.cross[1][0][1:2])
    assert taken.nbytes == 4 * (2 * 2 * 2 * 4 * 4 + 2 * 2 * 7 * 4)
    store.keys[0].zero_()
    store.cross[1][0].zero_()
    assert taken.keys[0].any() and taken.cross[1][0].any(), "nothing is shared"
