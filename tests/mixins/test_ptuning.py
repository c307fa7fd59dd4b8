"""The p-tuning prefix: names, the causal rule, the key/value cache, training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mixins.base import ZooModel
from mixins.kv_cache import kv_cache
from mixins.ptuning import add_ptuning
from sat_models.zoo import load_pretrained

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
LENGTH = 5


def _model(name: str = "cogvlm-mini", *, std: float = 0.5) -> ZooModel:
    model = load_pretrained(GOLDEN / name, device="cpu", dtype="float32").model
    mixin = add_ptuning(model, LENGTH)
    for parameter in mixin.prefix:
        parameter.data.normal_(std=std, generator=torch.Generator().manual_seed(3))
    return model


def _inputs(name: str = "cogvlm-mini") -> dict[str, Tensor]:
    data = load_file(GOLDEN / name / "reference.safetensors")
    fields = ("input_ids", "position_ids", "vision_expert_mask", "image_embed_mask")
    images = {
        key: data[f"pixels.{key.removesuffix('_image')}"]
        for key in ("vision_image", "cross_image")[: 1 + ("pixels.cross" in data)]
    }
    return {field: data[f"case0.{field}"][None] for field in fields} | images


@torch.inference_mode()
def _logits(model: ZooModel, **inputs: Tensor) -> Tensor:
    return model(**inputs)[0]


def test_names_and_shapes_are_those_of_the_originals() -> None:
    model = load_pretrained(GOLDEN / "cogvlm-mini", device="cpu", dtype="bfloat16").model
    mixin = add_ptuning(model, LENGTH)
    added = {n: tuple(p.shape) for n, p in model.named_parameters() if "ptuning" in n}
    assert added == {f"mixins.ptuning.prefix.{layer}": (2, 4, LENGTH, 16) for layer in range(3)}
    assert mixin.prefix[0].dtype == torch.bfloat16
    with pytest.raises(KeyError, match="is already there"):
        add_ptuning(model, 1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        add_ptuning(load_pretrained(GOLDEN / "cogvlm-mini", device="cpu").model, 0)


def test_the_prefix_is_seen_by_all_and_the_causal_rule_holds() -> None:
    model, inputs = _model(), _inputs()
    with_prefix = _logits(model, **inputs)
    changed = inputs["input_ids"].clone()
    changed[0, 30:] = 7
    assert _logits(model, **{**inputs, "input_ids": changed})[:, :30].equal(with_prefix[:, :30])
    assert not _logits(model, **{**inputs, "input_ids": changed})[:, 30:].equal(with_prefix[:, 30:])
    model.del_mixin("ptuning")
    assert ((with_prefix - _logits(model, **inputs)).abs().amax(-1) > 1e-3).all()


def test_a_mask_means_the_same_as_the_causal_rule() -> None:
    model, inputs = _model(), _inputs()
    tokens = inputs["input_ids"].shape[1]
    mask = torch.ones(1, 1, tokens, tokens).tril()
    torch.testing.assert_close(_logits(model, **inputs, attention_mask=mask), _logits(model, **inputs))


def test_it_is_attention_over_more_keys() -> None:
    """The hook itself against softmax written out."""
    model = _model()
    q, k, v = torch.randn(3, 2, 4, 6, 16, generator=torch.Generator().manual_seed(0))
    keys, values = (part.expand(2, -1, -1, -1) for part in model.get_mixin("ptuning").prefix[1])
    ours = model.collect_hooks_()["attention_fn"](q, k, v, None, None, layer_id=1, may_look=None)
    scores = q @ torch.cat((keys, k), dim=2).transpose(-1, -2) / 16**0.5
    future = torch.ones(6, 6).triu(1).bool()
    scores[..., LENGTH:].masked_fill_(future, float("-inf"))
    torch.testing.assert_close(ours, scores.softmax(-1) @ torch.cat((values, v), dim=2))


def test_the_cache_holds_the_sequence_alone() -> None:
    model, inputs = _model(), _inputs()
    whole = _logits(model, **inputs)
    images = {name: inputs.pop(name) for name in list(inputs) if name.endswith("_image")}
    first, rest = {n: t[:, :31] for n, t in inputs.items()}, {n: t[:, 31:] for n, t in inputs.items()}
    with torch.inference_mode(), kv_cache(model, 64) as cache:
        steps = [model(**first, **images)[0]]
        cache.advance(31)
        for token in range(rest["input_ids"].shape[1]):
            one = {name: rest[name][:, token : token + 1] for name in ("input_ids", "position_ids")}
            steps.append(model(**one)[0])
            cache.advance(1)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_it_learns() -> None:
    model, inputs = _model(std=0.01), _inputs()
    model.requires_grad_(False)
    prefix = list(model.get_mixin("ptuning").requires_grad_(True).prefix)
    optimizer, losses = torch.optim.AdamW(prefix, lr=0.05), []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(model(**inputs)[0][0, :-1], inputs["input_ids"][0, 1:])
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in prefix)
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.05


def test_cross_attention_has_no_prefix() -> None:
    model, inputs = _model("cogagent-mini"), _inputs("cogagent-mini")
    assert _logits(model, **inputs).isfinite().all()
    q, k, v = torch.randn(3, 1, 2, 3, 8)
    attend = model.collect_hooks_()["attention_fn"]
    crossed = attend(q, k, v, None, None, layer_id=0, may_look=None, cross_attention=True)
    torch.testing.assert_close(crossed, torch.nn.functional.scaled_dot_product_attention(q, k, v))
