"""Quantised models through the public contract: loaded, answered with, written, read again, and refused."""

from __future__ import annotations

import json
import logging
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from mixins.lora import LoRASettings, apply_lora
from sat_models.checkpoint.adapter import save_adapter
from sat_models.checkpoint.convert import convert
from sat_models.checkpoint.io import read_weights, save_checkpoint
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.common import quantised as layers
from sat_models.models.common.quantisation import Quantisation
from sat_models.zoo import load_pretrained, locate

pytest.importorskip("bitsandbytes")

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
IMAGE = Path(__file__).resolve().parents[2] / "examples" / "1.png"
TINY = locate("cogvlm-tiny")


@pytest.fixture(scope="module")
def full():
    return load_pretrained(TINY, device="cpu")


@pytest.fixture(scope="module", params=[8, 4])
def quantised(request):
    return load_pretrained(TINY, device="cpu", quant=request.param)


def _bits(vlm) -> int:
    return vlm.config.extra["quantisation"]["bits"]


def _bytes(model: torch.nn.Module) -> int:
    return sum(value.nbytes for value in model.state_dict().values())


def _same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(value.equal(second[name]) for name, value in first.items())


def _logits(vlm) -> torch.Tensor:
    inputs = vlm.processor(IMAGE, "Describe this image.")
    with torch.inference_mode():
        return vlm.model(**inputs.model_kwargs())[0]


def test_linears_of_language_experts_and_tower_are_quantised(quantised, full):
    weights, before = quantised.model.state_dict(), full.model.state_dict()
    changed = {name.removesuffix(".quant_scale") for name in weights if name.endswith(".quant_scale")}
    layer, tower = "transformer.layers.0", "mixins.eva.vit_model.transformer.layers.3"
    for name in (
        f"{layer}.attention.query_key_value", f"{layer}.attention.dense", f"{layer}.mlp.dense_4h_to_h",
        "mixins.mlp.gate_proj.1", "mixins.mlp.vision_dense_4h_to_h_list.2", "mixins.rotary.vision_dense_list.0",
        f"{tower}.attention.query_key_value", f"{tower}.mlp.dense_h_to_4h",
    ):  # fmt: skip
        assert name in changed
        assert not weights[f"{name}.weight"].is_floating_point()
    assert not [name for name in changed if name.startswith(("mixins.lm", "mixins.eva.linear_proj"))]
    left = [name for name in weights if name.rpartition(".")[0] not in changed]
    assert left and all(weights[name].equal(before[name]) for name in left)
    assert _bytes(quantised.model) < _bytes(full.model) * {8: 0.4, 4: 0.3}[_bits(quantised)]
    assert not any(parameter.requires_grad for parameter in quantised.model.parameters())


def test_logits_stay_near(quantised, full):
    wanted, given = _logits(full), _logits(quantised)
    error = (given - wanted).norm() / wanted.norm()
    assert 0 < error < {8: 0.03, 4: 0.3}[_bits(quantised)]


def test_it_answers(quantised, full):
    result = quantised.generate(IMAGE, "Describe this image.", max_new_tokens=40)
    assert result.text.endswith(".") and result.finish_reason == "stop"
    if _bits(quantised) == 8:
        assert result.text == full.generate(IMAGE, "Describe this image.", max_new_tokens=40).text


def test_skipped_linears_stay(full):
    vlm = load_pretrained(TINY, device="cpu", quant=4, quant_skip=["mixins.eva.*"])
    weights, before = vlm.model.state_dict(), full.model.state_dict()
    tower = [name for name in before if name.startswith("mixins.eva.")]
    assert all(weights[name].equal(before[name]) for name in tower)
    assert "transformer.layers.0.attention.dense.quant_scale" in weights
    assert "mixins.lm.lm_head.quant_scale" not in weights
    with pytest.raises(ConfigError, match=r"'mixins.evva.\*' fits no linear"):
        load_pretrained(TINY, device="cpu", quant=4, quant_skip=["mixins.evva.*"])
    with pytest.raises(ConfigError, match="say quant 8 or 4"):
        load_pretrained(TINY, device="cpu", quant_skip=["mixins.eva.*"])
    with pytest.raises(ConfigError, match="quant is 5"):
        load_pretrained(TINY, device="cpu", quant=5)


def test_half_precision(quantised):
    vlm = load_pretrained(TINY, device="cpu", dtype="bfloat16", quant=_bits(quantised))
    assert vlm.generate(IMAGE, "Describe this image.", max_new_tokens=40).text.endswith(".")
    assert {v.dtype for n, v in vlm.model.state_dict().items() if n.endswith("quant_scale")} == {
        torch.float32 if _bits(quantised) == 8 else torch.uint8
    }


def test_written_by_the_script_and_read_again(quantised, tmp_path, monkeypatch, capsys):
    handlers, level = list(logging.root.handlers), logging.root.level
    flags = ["--from", TINY, "--to", "sat", "--output", tmp_path / "out", "--quant", _bits(quantised), "--mp", 2]
    monkeypatch.setattr("sys.argv", ["convert_checkpoint.py", *map(str, flags), "--verify"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / "convert_checkpoint.py"), run_name="__main__")
    logging.root.handlers[:], logging.root.level = handlers, level
    assert not ended.value.code and "logits equal" in capsys.readouterr().out
    loaded = load_pretrained(tmp_path / "out", device="cpu")
    assert _same(loaded.model, quantised.model)
    assert loaded.tokenizer_file is not None
    assert _same(load_pretrained(tmp_path / "out", device="cpu", quant=_bits(quantised)).model, quantised.model)
    for wrong in ({"quant": 12 - _bits(quantised)}, {"quant": _bits(quantised), "quant_skip": ["mixins.eva.*"]}):
        with pytest.raises(ConfigError, match=r"all but \*.lm_head; load it without quant"):
            load_pretrained(tmp_path / "out", device="cpu", **wrong)
    merged = convert(tmp_path / "out", "sat", tmp_path / "one", dtype=torch.bfloat16)
    scales = {n: v for n, v in read_weights(merged / "mp_rank_00_model_states.pt").items() if n.endswith("quant_scale")}
    assert scales and all(value.equal(quantised.model.state_dict()[name]) for name, value in scales.items())


def test_a_model_in_memory_round_trips(quantised, tmp_path):
    save_checkpoint(quantised.model, tmp_path / "saved", quantised.config, step=1)
    assert json.loads((tmp_path / "saved" / "model_config.json").read_text())["quantisation"] == {
        "bits": _bits(quantised),
        "skip": ["*.lm_head"],
    }
    assert _same(load_pretrained(tmp_path / "saved", device="cpu").model, quantised.model)
    with pytest.raises(ConfigError, match="have no Hugging Face form"):
        convert(tmp_path / "saved", "hf", tmp_path / "hub")
    with pytest.raises(ConfigError, match="is quantised already"):
        convert(tmp_path / "saved", "sat", tmp_path / "twice", quantisation=Quantisation(bits=4))
    config = json.loads((tmp_path / "saved" / "model_config.json").read_text())
    del config["quantisation"]
    (tmp_path / "saved" / "model_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"quant_scale(?s:.*)are quantised, but model_config.json lacks"):
        load_pretrained(tmp_path / "saved", device="cpu")


def test_lora_is_merged_before_and_not_into_quantised_weights(quantised, full, tmp_path, monkeypatch):
    shutil.copytree(TINY, tmp_path / "base")
    model = load_pretrained(tmp_path / "base", device="cpu").model
    apply_lora(model, LoRASettings(targets=("transformer.layers.1.*",), rank=2))
    model.transformer.layers[1].attention.dense.matrix_B[0].data.normal_()
    save_adapter(model, tmp_path / "adapter", base_model=str(tmp_path / "base"))
    bits, name = _bits(quantised), "transformer.layers.1.attention.dense"
    monkeypatch.setattr(layers, "_CHUNK", 2000)  # a weight is read in many runs
    tuned = load_pretrained(tmp_path / "adapter", device="cpu", quant=bits).model.get_submodule(name)
    assert not tuned.weight.equal(quantised.model.get_submodule(name).weight)
    merged = load_pretrained(tmp_path / "adapter", device="cpu").model.get_submodule(name)
    weight, scale = layers.quantise(merged.weight, bits, block=layers.block_size(merged))
    assert tuned.weight.equal(weight) and tuned.quant_scale.equal(scale)
    written = convert(TINY, "sat", tmp_path / "quantised", quantisation=Quantisation(bits=bits))
    shutil.rmtree(tmp_path / "base")
    written.parent.rename(tmp_path / "base")
    with pytest.raises(CheckpointError, match="LoRA cannot be merged into quantised weights"):
        load_pretrained(tmp_path / "adapter", device="cpu")


def test_no_place_is_left_by_a_size_that_cuts_blocks(tmp_path):
    with pytest.raises(ConfigError, match="inside a block of"):
        convert(TINY, "sat", tmp_path / "out", quantisation=Quantisation(bits=4), size=8)
    assert not (tmp_path / "out").exists()
