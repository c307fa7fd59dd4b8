"""LoRA on one process: names, what trains, merging; `tests/parallel/test_lora_parallel.py` does several."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mixins.base import ZooModel
from mixins.lora import (
    LoRALinear,
    LoRASettings,
    apply_lora,
    linear_names,
    lora_layers,
    lora_state_dict,
)
from mixins.sat_compat import ColumnParallelLinear, RowParallelLinear
from mixins.whole import WholeLinear
from sat_models import runtime
from sat_models.checkpoint.adapter import save_adapter
from sat_models.checkpoint.reshard import split_rules
from sat_models.models.build import build_model, make_config
from sat_models.zoo import load_pretrained

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TARGETS = ("transformer.layers.*", "mixins.mlp.*", "mixins.rotary.*", "mixins.eva.*")
QKV = "transformer.layers.1.attention.query_key_value"


def _model(name: str = "cogvlm-mini") -> ZooModel:
    return load_pretrained(GOLDEN / name, device="cpu", dtype="float32").model


def _inputs(name: str = "cogvlm-mini", case: str = "case0") -> dict[str, Tensor]:
    data = load_file(GOLDEN / name / "reference.safetensors")
    fields = ("input_ids", "position_ids", "vision_expert_mask", "image_embed_mask")
    images = {"vision_image": data["pixels.vision"]}
    if "pixels.cross" in data:
        images["cross_image"] = data["pixels.cross"]
    return {name: data[f"{case}.{name}"][None] for name in fields} | images


def _shake(model: nn.Module, seed: int = 1) -> None:
    """Updates as after training: no matrix is zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in lora_state_dict(model).items():
        if ".magnitude." in name:
            value.mul_(torch.empty_like(value).uniform_(0.8, 1.2, generator=generator))
        else:
            value.normal_(std=0.3, generator=generator)


def _merged(model: nn.Module, folder: Path, name: str = "cogvlm-mini") -> ZooModel:
    """The base model with this one's LoRA merged, as whoever loads an adapter gets it."""
    file = save_adapter(model, folder, base_model=str(GOLDEN / name))
    return load_pretrained(file, device="cpu", dtype="float32").model


@torch.inference_mode()
def _logits(model: nn.Module, **inputs: Tensor) -> Tensor:
    return model(**inputs)[0]


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_new_adapters_change_nothing_and_merging_keeps_the_output(use_dora: bool, tmp_path: Path) -> None:
    model, inputs = _model(), _inputs()
    names = list(model.state_dict())
    plain = _logits(model, **inputs)
    wrapped = apply_lora(model, LoRASettings(targets=TARGETS, rank=4, use_dora=use_dora))
    assert len(wrapped) == 3 * (5 + 5) + 2 * 4 + 4
    assert _logits(model, **inputs).equal(plain)
    _shake(model)
    trained = _logits(model, **inputs)
    assert (trained - plain).abs().max() > 0.1
    merged = _merged(model, tmp_path)
    assert list(merged.state_dict()) == names
    assert (_logits(merged, **inputs) - trained).abs().max() <= 1e-5


def test_names_shapes_and_what_trains_are_those_of_the_originals() -> None:
    model = _model()
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(True)
    apply_lora(model, LoRASettings(targets=(QKV, "transformer.layers.1.mlp.dense_4h_to_h.weight"), rank=2))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name.startswith(f"{QKV}.")}
    matrices = {f"{QKV}.matrix_A.{p}": (2, 64) for p in range(3)} | {f"{QKV}.matrix_B.{p}": (64, 2) for p in range(3)}
    assert shapes == {f"{QKV}.original.weight": (192, 64), **matrices}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"{name}.original.weight" for name in lora_layers(model)}
    assert len(before) + 6 + 2 == len(dict(model.named_parameters()))
    assert set(lora_state_dict(model)) == {
        *matrices,
        *(f"transformer.layers.1.mlp.dense_4h_to_h.matrix_{x}.0" for x in "AB"),
    }


def test_the_merged_weight_is_the_documented_formula() -> None:
    """q, k and v stacked; alpha 1 unless said otherwise."""
    for alpha in (1.0, 6.0):
        model = _model()
        weight = model.get_submodule(QKV).weight.clone()
        apply_lora(model, LoRASettings(targets=(QKV,), rank=3, alpha=alpha))
        _shake(model)
        layer = model.get_submodule(QKV)
        product = torch.cat([b @ a for a, b in zip(layer.matrix_A, layer.matrix_B, strict=True)])
        torch.testing.assert_close(layer.merged_weight(), weight + product * alpha / 3)
    assert LoRASettings(targets=(QKV,), rank=3).alpha == 1.0


def test_dora_scales_each_row_to_its_magnitude() -> None:
    model = _model()
    apply_lora(model, LoRASettings(targets=(QKV,), rank=3, use_dora=True))
    _shake(model)
    layer = model.get_submodule(QKV)
    lengths = torch.cat(list(layer.magnitude))
    torch.testing.assert_close(layer.merged_weight().norm(dim=1), lengths)
    layer(torch.randn(2, 5, 64)).square().sum().backward()
    assert all(p.grad is not None for _, p in layer.own_parameters())


def test_the_initial_matrices_depend_on_seed_and_name_only() -> None:
    first = _model()
    apply_lora(first, LoRASettings(targets=(QKV,), rank=4))
    torch.manual_seed(99)
    second = _model()
    apply_lora(second, LoRASettings(targets=("transformer.layers.*",), rank=4))
    ours, same = lora_state_dict(first), lora_state_dict(second)
    assert all(value.equal(same[name]) for name, value in ours.items())
    q, k, v = (ours[f"{QKV}.matrix_A.{p}"] for p in range(3))
    assert not q.equal(k) and not k.equal(v)
    assert q.abs().max() <= 64**-0.5 and q.std() > 0.05
    other = _model()
    apply_lora(other, LoRASettings(targets=(QKV,), rank=4, seed=1))
    assert not lora_state_dict(other)[f"{QKV}.matrix_A.0"].equal(q)


def test_dropout_acts_in_training_only() -> None:
    model, inputs = _model(), _inputs()
    apply_lora(model, LoRASettings(targets=(QKV,), rank=4, dropout=0.5))
    _shake(model)
    assert _logits(model.eval(), **inputs).equal(_logits(model, **inputs))
    assert not _logits(model.train(), **inputs).equal(_logits(model, **inputs))


def test_layer_range_counts_in_every_tower_and_leaves_unnumbered_linears() -> None:
    model = _model()
    wrapped = apply_lora(model, LoRASettings(targets=TARGETS, rank=2, layer_range=(1,)))
    numbers = {part for name in wrapped for part in name.split(".") if part.isdigit()}
    assert numbers == {"1"}
    assert "mixins.eva.linear_proj.gate_proj" in wrapped
    assert "mixins.eva.vit_model.transformer.layers.1.attention.dense" in wrapped
    with pytest.raises(ValueError, match=r"layer_range names \[7\], but the targets lie in layers \[0, 1, 2\]"):
        apply_lora(_model(), LoRASettings(targets=("mixins.mlp.*",), rank=2, layer_range=(1, 7)))


def test_patterns_that_fit_nothing_name_their_neighbours() -> None:
    model = _model()
    with pytest.raises(ValueError, match=r"fits no linear; did you mean .*transformer.layers.\*.attention.dense"):
        apply_lora(model, LoRASettings(targets=("transformer.layer.*.attention.dense",), rank=2))
    assert not lora_layers(model)
    apply_lora(model, LoRASettings(targets=(QKV,), rank=2))
    with pytest.raises(ValueError, match="what it fits is wrapped already"):
        apply_lora(model, LoRASettings(targets=(QKV,), rank=2))
    assert QKV not in linear_names(model) and f"{QKV}.original" not in linear_names(model)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": 0}, "rank of LoRA must be a positive integer, got 0"),
        ({"alpha": 0.0}, "alpha of LoRA must be positive"),
        ({"dropout": 1.0}, r"dropout of LoRA must be in \[0, 1\)"),
        ({"targets": "x"}, "targets of LoRA must be a list of patterns"),
    ],
)
def test_settings_are_checked(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoRASettings(**{"targets": ("x",), "rank": 2, **wrong})
    with pytest.raises(ValueError, match="settings have the keys"):
        LoRASettings.from_dict({"rank": 2, "targets": ["x"], "colour": 1})


def test_settings_survive_json() -> None:
    settings = LoRASettings(targets=("a", "b"), rank=2, layer_range=(0, 1), use_dora=True)
    assert LoRASettings.from_dict(settings.to_dict()) == settings


def test_state_dict_holds_the_adapter_alone() -> None:
    """Put into another wrapped model, it makes that the same."""
    settings = LoRASettings(targets=TARGETS, rank=2)
    first, second, inputs = _model(), _model(), _inputs()
    apply_lora(first, settings)
    apply_lora(second, settings)
    _shake(first)
    state = lora_state_dict(first)
    assert all(".matrix_" in name for name in state)
    assert not second.load_state_dict(state, strict=False).unexpected_keys
    assert _logits(first, **inputs).equal(_logits(second, **inputs))


def test_a_model_on_meta_is_wrapped_without_memory() -> None:
    runtime.init_model_parallel(1)
    config = make_config(load_pretrained(GOLDEN / "cogvlm-mini", device="cpu").checkpoint.config)
    model = build_model(config)
    apply_lora(model, LoRASettings(targets=TARGETS, rank=2, use_dora=True))
    assert all(value.is_meta for value in lora_state_dict(model).values())


def test_code_that_reads_a_plain_weight_gets_the_adapted_one(tmp_path: Path) -> None:
    """CogAgent's high-resolution tower multiplies by the weight of two of its linears itself."""
    model, inputs = _model("cogagent-mini"), _inputs("cogagent-mini")
    apply_lora(model, LoRASettings(targets=("mixins.encoder.*.attn.*_proj", "transformer.layers.*"), rank=2))
    _shake(model)
    trained = _logits(model, **inputs)
    assert (_logits(_merged(model, tmp_path, "cogagent-mini"), **inputs) - trained).abs().max() <= 1e-5


def test_other_linears_gathered_ones_and_other_layers() -> None:
    runtime.init_model_parallel(1)

    class Special(nn.Linear):
        pass

    settings = LoRASettings(targets=("x",), rank=2)
    assert LoRALinear(Special(4, 6), settings, name="x")(torch.ones(3, 4)).shape == (3, 6)
    gathered = ColumnParallelLinear(4, 6, gather_output=True)
    assert LoRALinear(gathered, settings, name="x")(torch.ones(3, 4)).shape == (3, 6)
    with pytest.raises(ValueError, match="DoRA cannot adapt x: it gathers its output"):
        LoRALinear(gathered, LoRASettings(targets=("x",), rank=2, use_dora=True), name="x")
    with pytest.raises(TypeError, match="not Conv2d"):
        LoRALinear(nn.Conv2d(3, 4, 1), settings, name="x")


def test_a_linear_that_each_rank_keeps_whole_has_the_matrices_of_the_parallel_one() -> None:
    """A tower of 3 heads is cut by one process and by three, and whole in each of two: an adapter fits all of them."""
    runtime.init_model_parallel(1)
    settings = LoRASettings(targets=("*",), rank=2, use_dora=True)
    linears = (
        ColumnParallelLinear(6, 18, stride=3, gather_output=False),
        RowParallelLinear(18, 6, input_is_parallel=True),
    )
    for linear in linears:
        linear.divisible_by = 3
        cut, whole = (LoRALinear(base, settings, name="x") for base in (linear, WholeLinear(linear, 3)))
        found = dict(whole.own_parameters())
        assert found.keys() == dict(cut.own_parameters()).keys()
        for key, value in cut.own_parameters():
            assert value.equal(found[key]) and value.model_parallel == (key in cut.split_dims()), key
            assert not found[key].model_parallel
        rules = split_rules(whole)
        assert rules == split_rules(cut)
        assert all(rules[key].whole_at(2) and not rules[key].whole_at(3) for key in cut.split_dims())
        x = torch.randn(2, linear.input_size)
        torch.testing.assert_close(whole(x), cut(x))
