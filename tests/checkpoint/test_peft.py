"""Adapters of PEFT: names and arithmetic as PEFT writes and means them, merged by hand beside ours.

PEFT 0.21.2 on transformers 5.23 gave the same logits as ours within 3e-6 on tiny LLaVAs (two and four key/value heads;
q and v alone, all linears, patterns of rank and alpha with rsLoRA, DoRA, a projector trained in full).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mixins.heads import HeadLayout
from sat_models import runtime
from sat_models.checkpoint.adapter import adapter_files, read_adapter
from sat_models.checkpoint.convert import convert, save_hf
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.peft import PeftSettings
from sat_models.checkpoint.peft_names import LowRankMatrices, PeftLinear
from sat_models.commands.merge import main as merge
from sat_models.config import read_json
from sat_models.errors import CheckpointError
from sat_models.models.build import build_model, make_config
from sat_models.models.common.hf_form import KeyTable, Packed
from sat_models.training.resuming import weights_digest
from sat_models.zoo import load_config, load_pretrained

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "models" / "llava-tiny.json"
PREFIX = "base_model.model."
PLAIN = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "init_lora_weights": True}
LAYER, TOWER = "language_model.model.layers.{}.", "vision_tower.vision_model.encoder.layers.{}."


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA, with fewer keys than queries, in transformers' form."""
    runtime.init_model_parallel(1)
    config = replace(make_config(read_json(CONFIG)), num_kv_heads=2)
    torch.manual_seed(0)
    model = build_model(config, device="cpu", dtype=torch.float32)
    return save_hf(model, tmp_path_factory.mktemp("llava") / "hub", config=config)


def matrices(base: Mapping[str, Tensor], linears: Mapping[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Random A and B for linears of the hub's names, of these ranks."""
    generator = torch.Generator().manual_seed(1)
    shapes = {name: base[f"{name}.weight"].shape for name in linears}
    return {
        name: (torch.randn(rank, shapes[name][1], generator=generator) * 0.1,
               torch.randn(shapes[name][0], rank, generator=generator) * 0.1)
        for name, rank in linears.items()
    }  # fmt: skip


def write(folder: Path, base: str | None, tensors: Mapping[str, Tensor], **settings: Any) -> Path:
    """An adapter as PEFT saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {PREFIX + name: value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    config = {**PLAIN, "base_model_name_or_path": base, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def pairs(made: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    parts = ("lora_A.weight", "lora_B.weight")
    return {f"{name}.{part}": value for name, both in made.items() for part, value in zip(parts, both, strict=True)}


def merged_by_hand(hub: Path, folder: Path, new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the hub's folder with some replaced, as our model has them."""
    shutil.copytree(hub, folder)
    (file,) = folder.glob("*.safetensors")
    save_file({**load_file(file), **new}, file, {"format": "pt"})
    return load_pretrained(folder, device="cpu", dtype="float32").model.state_dict()


def updated(base: Mapping[str, Tensor], made: Mapping[str, tuple[Tensor, Tensor]], scale: Any) -> dict[str, Tensor]:
    """W + scale · B A of each linear."""
    return {
        f"{n}.weight": base[f"{n}.weight"] + scale(n) * (b.double() @ a.double()).float() for n, (a, b) in made.items()
    }


def assert_alike(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert given.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(given[name], value, atol=1e-6, rtol=1e-6, msg=name)


CASES: dict[str, tuple[dict[str, int], dict[str, Any], Any]] = {
    "q and v": ({f"{LAYER.format(n)}self_attn.{x}_proj": 4 for n in (0, 1) for x in "qv"}, {}, lambda name: 2.0),
    "k alone": ({f"{LAYER.format(1)}self_attn.k_proj": 4}, {}, lambda name: 2.0),
    "everything": (
        {
            **{f"{LAYER.format(0)}self_attn.{x}_proj": 4 for x in "qkvo"},
            **{f"{LAYER.format(0)}mlp.{x}_proj": 4 for x in ("gate", "up", "down")},
            **{f"{TOWER.format(1)}self_attn.{x}_proj": 4 for x in "kv"},
            f"{TOWER.format(0)}mlp.fc1": 4, "multi_modal_projector.linear_1": 4, "language_model.lm_head": 4,
        },
        {}, lambda name: 2.0,
    ),
    "patterns": (
        {
            f"{LAYER.format(0)}self_attn.q_proj": 3, f"{LAYER.format(0)}self_attn.v_proj": 4,
            f"{LAYER.format(1)}mlp.down_proj": 2,
        },
        {"use_rslora": True, "alpha_pattern": {"v_proj": 5, "layers.1.mlp.down_proj": 3}},
        lambda name: 5 / 2 if "v_proj" in name else 3 / 2**0.5 if "down" in name else 8 / 3**0.5,
    ),
}  # fmt: skip


def in_memory(name: str) -> str:
    """A name of the hub's as transformers 5 has it in memory, and PEFT therefore on disk."""
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    parts = r"^(vision_tower|language_model|multi_modal_projector)\.(?:vision_model\.|model\.)?"
    return re.sub(parts, r"model.\1.", name)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", ["the hub's", "transformers 5"])
def test_merged_weights_are_those_of_plain_arithmetic(case: str, layout: str, hub: Path, tmp_path: Path) -> None:
    linears, settings, scale = CASES[case]
    (file,) = hub.glob("*.safetensors")
    base = load_file(file)
    made = matrices(base, linears)
    wanted = merged_by_hand(hub, tmp_path / "wanted", updated(base, made, scale))
    tensors = pairs(made)
    if layout == "transformers 5":
        tensors = {in_memory(name): value for name, value in tensors.items()}
    folder = write(tmp_path / "adapter", str(hub), tensors, **settings)
    assert_alike(load_pretrained(folder, device="cpu", dtype="float32").model.state_dict(), wanted)


def test_dora_and_modules_trained_in_full(hub: Path, tmp_path: Path) -> None:
    (file,) = hub.glob("*.safetensors")
    base = load_file(file)
    linears = {f"{LAYER.format(0)}self_attn.{x}_proj": 4 for x in "qkvo"}
    made = matrices(base, linears)
    new, lengths = updated(base, made, lambda name: 2.0), {}
    for name, weight in new.items():
        length = lengths[name] = torch.rand(len(weight)) + 0.5
        new[name] = weight * (length / weight.norm(dim=1))[:, None]
    whole = torch.randn_like(base["multi_modal_projector.linear_2.weight"])
    new["multi_modal_projector.linear_2.weight"] = whole
    wanted = merged_by_hand(hub, tmp_path / "wanted", new)
    tensors = {
        **pairs(made),
        **{f"{name.removesuffix('.weight')}.lora_magnitude_vector": length for name, length in lengths.items()},
        "multi_modal_projector.linear_2.modules_to_save.weight": whole,
    }
    folder = write(tmp_path / "adapter", str(hub), tensors, use_dora=True)
    assert_alike(load_pretrained(folder, device="cpu", dtype="float32").model.state_dict(), wanted)
    del tensors[f"{LAYER.format(0)}self_attn.k_proj.lora_magnitude_vector"]
    with pytest.raises(CheckpointError, match=r"DoRA was trained on a part of transformer\.layers\.0\.attention"):
        load_pretrained(write(tmp_path / "part", str(hub), tensors, use_dora=True), device="cpu")


def test_every_door_takes_it(hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder, its file, torch's own form of it; merged into SAT folders of one and two parts."""
    (file,) = hub.glob("*.safetensors")
    made = matrices(load_file(file), CASES["q and v"][0])
    folder = write(tmp_path / "adapter", str(hub), pairs(made))
    wanted = load_pretrained(folder, device="cpu", dtype="float32").model.state_dict()
    assert load_config(folder).num_kv_heads == 2, "sizes are those of the base model"
    assert merge(["--from_pretrained", str(folder), "--output", str(tmp_path / "merged")]) == 0
    convert(hub, "sat", tmp_path / "two", size=2, adapter=read_adapter(folder / "adapter_model.safetensors"))
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    before = weights_digest(str(folder))
    (folder / "adapter_model.safetensors").unlink()
    for place in (tmp_path / "merged", tmp_path / "two", folder):
        assert_alike(load_pretrained(place, device="cpu", dtype="float32").model.state_dict(), wanted)
    assert weights_digest(str(folder)) != before and len(adapter_files(folder)) == 2, "its config counts, too"
    with pytest.raises(CheckpointError, match=r"an adapter of PEFT, not a model.*merge_lora\.py --from_pretrained"):
        find_checkpoint(folder)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"peft_type": "IA3"}, "peft_type 'IA3'; LORA alone is read"),
    "no base": ({"base_model_name_or_path": None}, "no base_model_name_or_path"),
    "a base that is not there": (
        {"base_model_name_or_path": "/nowhere/x"},
        "needs the model that it was trained on.*nowhere",
    ),
    "biases": ({"bias": "lora_only"}, "bias 'lora_only', which is not read here"),
    "another base": ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changed the base model"),
    "another sum": ({"use_bdlora": {"x": 1}}, "use_bdlora .* not read here"),
    "no number": ({"lora_alpha": "many"}, "lora_alpha or alpha_pattern is no number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_refused_by_name(case: str, hub: Path, tmp_path: Path) -> None:
    (file,) = hub.glob("*.safetensors")
    settings, said = REFUSED[case]
    folder = write(tmp_path, str(hub), pairs(matrices(load_file(file), CASES["k alone"][0])), **settings)
    with pytest.raises(CheckpointError, match=said):
        load_pretrained(folder, device="cpu")


def test_an_adapter_of_another_base_is_refused_with_names_and_sizes(hub: Path, tmp_path: Path) -> None:
    linears = {f"{LAYER.format(0)}self_attn.q_proj": 4}
    (file,) = hub.glob("*.safetensors")
    ((a, b),) = matrices(load_file(file), linears).values()
    (name,) = linears
    strange = write(tmp_path / "names", str(hub), pairs({"transformer.h.0.attn.c_attn": (a, b)}))
    with pytest.raises(CheckpointError, match=r"no adapter for LlavaFor.*: 1 of 1 names.*such as transformer\.h\.0"):
        load_pretrained(strange, device="cpu")
    wide = write(tmp_path / "sizes", str(hub), pairs({name: (torch.ones(4, 99), b)}))
    with pytest.raises(CheckpointError, match=r"query_key_value make \[128, 99\], but its weight is \[128, 64\]"):
        load_pretrained(wide, device="cpu")
    deep = write(tmp_path / "layers", str(hub), pairs({name.replace(".0.", ".77."): (a, b)}))
    with pytest.raises(CheckpointError, match=r"1 name\(s\) or shapes do not fit, such as transformer\.layers\.77\."):
        load_pretrained(deep, device="cpu")
    half = write(tmp_path / "half", str(hub), {f"{name}.lora_A.weight": a})
    with pytest.raises(CheckpointError, match=rf"matrices of {name} are no pair: lora_A"):
        load_pretrained(half, device="cpu")
    (half / "non_lora_trainables.bin").touch()
    with pytest.raises(CheckpointError, match=r"LLaVA's own form of LoRA.*merge_lora_weights\.py"):
        load_pretrained(half, device="cpu")


def test_rows_that_are_packed_by_groups() -> None:
    """InternLM2's `wqkv`: B and lengths are put into SAT's order as the weight itself is."""
    heads = HeadLayout(num_heads=4, num_kv_heads=2, head_dim=8, rotary_dim=8)
    keys = KeyTable({"layers.{i}.qkv.weight": Packed("model.layers.{i}.wqkv.weight")}, heads=heads)
    a, b, w = torch.randn(3, 16), torch.randn(64, 3), torch.randn(64, 16)
    place = keys.place("model.layers.0.wqkv.weight")
    linear = PeftLinear("model.layers.0.wqkv", {"lora_A": a, "lora_B": b, "lora_magnitude_vector": w.norm(dim=1)})
    matrices = LowRankMatrices(keys, PeftSettings(6.0))
    matrices.add(linear, [place])
    made, rank, alpha = matrices.tensors()
    assert alpha / rank == 2
    wanted = keys.sat_value(place, [w + 2 * b @ a])
    given = keys.sat_value(place, [w]) + 2 * made["layers.0.qkv.matrix_B.0"] @ made["layers.0.qkv.matrix_A.0"]
    torch.testing.assert_close(given, wanted)
    torch.testing.assert_close(made["layers.0.qkv.magnitude.0"], keys.sat_value(place, [w.norm(dim=1)]))
