"""Checkpoint to checkpoint: model-parallel sizes, LoRA of ours and of the originals, adapter files, the two scripts."""

from __future__ import annotations

import json
import logging
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mixins.base import ZooModel
from mixins.lora import LoRASettings, apply_lora, lora_state_dict
from mixins.ptuning import add_ptuning
from sat_models.checkpoint.adapter import read_adapter, save_adapter
from sat_models.checkpoint.convert import convert
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.io import read_weights, save_checkpoint
from sat_models.checkpoint.merged import is_unmerged_lora, open_weights
from sat_models.checkpoint.reshard import slice_for_rank
from sat_models.checkpoint.source import open_source
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.build import build_model, make_config
from sat_models.models.common import quantised
from sat_models.zoo import load_pretrained

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TARGETS = ("transformer.layers.*", "mixins.mlp.vision_*", "mixins.rotary.*", "mixins.eva.*")
QKV = "transformer.layers.0.attention.query_key_value"


@pytest.fixture(autouse=True)
def same_logging() -> Iterator[None]:
    """The scripts set up logging for a whole program; take that back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def _two_parts(golden: Path, tmp_path: Path, name: str = "cogvlm-mini") -> Path:
    folder = tmp_path / "two"
    shutil.copytree(golden / f"{name}-mp2", folder)
    for file in ("model_config.json", "tokenizer.model", "latest"):
        shutil.copy(golden / name / file, folder)
    return folder


def _shake(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, value in lora_state_dict(model).items():
        if ".magnitude." not in name:
            value.normal_(std=0.1, generator=generator)


def _logits(model: ZooModel, golden: Path) -> Tensor:
    data = load_file(golden / "cogvlm-mini" / "reference.safetensors")
    fields = ("input_ids", "position_ids", "vision_expert_mask", "image_embed_mask")
    inputs = {name: data[f"case0.{name}"][None] for name in fields}
    with torch.inference_mode():
        return model(**inputs, vision_image=data["pixels.vision"])[0]


def _run(monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", [script, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    return ended.value.code or 0


def test_two_parts_become_the_golden_one_bit_for_bit(golden, whole, tmp_path):
    written = convert(_two_parts(golden, tmp_path), "sat", tmp_path / "one")
    assert written == tmp_path / "one" / "1"
    merged = find_checkpoint(tmp_path / "one")
    assert len(merged.files) == 1 and merged.config["model_parallel_size"] == 1
    assert (tmp_path / "one" / "tokenizer.model").is_file()
    weights = read_weights(merged.files[0])
    assert list(weights) == list(whole)
    assert all(weights[name].equal(value) and weights[name].dtype == value.dtype for name, value in whole.items())


def test_one_becomes_the_two_parts_of_the_original_loader(golden, halves, tmp_path):
    convert(golden / "cogvlm-mini", "sat", tmp_path / "two", size=2)
    split = find_checkpoint(tmp_path / "two")
    assert split.config["model_parallel_size"] == 2
    for file, half in zip(split.files, halves, strict=True):
        weights = read_weights(file)
        assert weights.keys() == half.keys()
        assert all(weights[name].equal(value) for name, value in half.items())


def test_two_parts_to_four_and_back_with_another_dtype(golden, whole, tmp_path):
    convert(_two_parts(golden, tmp_path), "sat", tmp_path / "four", size=4, step="7")
    convert(tmp_path / "four", "sat", tmp_path / "one", dtype=torch.float16)
    weights = read_weights(find_checkpoint(tmp_path / "one").files[0])
    assert find_checkpoint(tmp_path / "one").step_folder.name == "7"
    assert all(weights[name].equal(value.half()) for name, value in whole.items())


def test_merging_says_what_it_cannot_do(golden, folder, tmp_path, monkeypatch, capsys):
    source = find_checkpoint(folder)
    with pytest.raises(ConfigError, match="model-parallel size 3 does not divide num_attention_heads = 4"):
        convert(source, "sat", tmp_path / "out", size=3)
    with pytest.raises(ConfigError, match="is what is read; name another folder"):
        convert(source, "sat", folder)
    assert _run(monkeypatch, "merge_lora.py", "--from_pretrained", folder, "--output", tmp_path / "out") == 2
    assert "has no LoRA matrices: there is nothing to merge" in capsys.readouterr().err
    weights = {name: value.clone() for name, value in read_weights(source.files[0]).items()}  # the file is mapped
    weights["mixins.new.weight"] = weights.pop("mixins.eva.boi")
    torch.save({"module": weights}, folder / "1" / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match=r"1 missing: mixins.eva.boi\n.*1 unexpected: mixins.new.weight"):
        convert(folder, "sat", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _original_style(whole: dict[str, Tensor], rank: int = 4) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint as the original fine-tuning leaves it, and what the rule says it means."""
    generator = torch.Generator().manual_seed(0)
    stored, wanted = {}, dict(whole)
    blocks = {QKV: 3, "transformer.layers.2.attention.dense": 1}
    tower = "mixins.eva.vit_model.transformer.layers.1.attention"
    blocks |= {f"{tower}.query_key_value": 3, f"{tower}.dense": 1}
    for name, value in whole.items():
        base, _, kind = name.rpartition(".")
        if base not in blocks:
            stored[name] = value
            continue
        stored[f"{base}.original.{kind}"] = value
        if kind != "weight":
            continue
        rows, columns = value.shape
        pairs = [
            (
                torch.randn(rank, columns, generator=generator),
                torch.randn(rows // blocks[base], rank, generator=generator),
            )
            for _ in range(blocks[base])
        ]
        for p, (a, b) in enumerate(pairs):
            stored[f"{base}.matrix_A.{p}"], stored[f"{base}.matrix_B.{p}"] = a, b
        wanted[name] = value + torch.cat([b @ a for a, b in pairs]) / rank
    return stored, wanted


def _merged(file: Path, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The class that is read where `stored` lies in the file."""
    torch.save({"module": stored}, file)
    weights = open_source(file.parent).open().weights
    return {name: weights.part(name).read() for name in weights.names}


def test_lora_of_the_originals_is_merged_by_their_rule(whole, file):
    stored, wanted = _original_style(whole)
    assert is_unmerged_lora(stored) and not is_unmerged_lora(whole)
    merged = _merged(file, stored)
    assert list(merged) == list(whole)
    for name, value in wanted.items():
        torch.testing.assert_close(merged[name], value, msg=name)
    half = _merged(file, {name: value.bfloat16() for name, value in stored.items()})
    assert all(value.dtype == torch.bfloat16 for value in half.values())


def test_incomplete_lora_of_the_originals(whole, file):
    stored, _ = _original_style(whole)
    with pytest.raises(CheckpointError, match=f"{QKV}.matrix_B.1 is missing"):
        _merged(file, {name: value for name, value in stored.items() if name != f"{QKV}.matrix_B.1"})
    with pytest.raises(CheckpointError, match=f"1 missing: {QKV}.weight"):
        _merged(file, {name: value for name, value in stored.items() if name != f"{QKV}.original.weight"})
    with pytest.raises(CheckpointError, match=r"make \[192, 60\], but its weight is \[192, 64\]"):
        _merged(file, {n: v[:, :60] if n.startswith(f"{QKV}.matrix_A") else v for n, v in stored.items()})


def test_a_folder_with_lora_of_the_originals_becomes_loadable(folder, file, whole, load, tmp_path, monkeypatch, capsys):
    stored, wanted = _original_style(whole)
    torch.save({"module": stored}, file)
    assert _run(monkeypatch, "merge_lora.py", "--from_pretrained", folder / "1", "--output", tmp_path / "out") == 0
    assert f"--from_pretrained {tmp_path / 'out'}" in capsys.readouterr().out
    merged = load(tmp_path / "out").state_dict()
    for name, value in merged.items():
        torch.testing.assert_close(value, wanted[name], msg=name)
    loaded = load_pretrained(folder, device="cpu").model.state_dict()
    assert "LoRA matrices beside its weights; merging them (alpha 1)" in capsys.readouterr().err
    assert loaded.keys() == merged.keys() and all(value.equal(merged[name]) for name, value in loaded.items())
    written = convert(folder, "hf", tmp_path / "hub")
    assert load_pretrained(written, device="cpu").model.state_dict()[f"{QKV}.weight"].equal(merged[f"{QKV}.weight"])


def test_parts_of_the_originals_are_merged_each_with_its_own_matrices(golden, halves, load, tmp_path):
    """Their row-parallel B differs between ranks; a merged model is what each rank had."""
    folder, dense = _two_parts(golden, tmp_path), "transformer.layers.1.attention.dense"
    generator, wanted = torch.Generator().manual_seed(0), []
    for rank, half in enumerate(halves):
        part = {name: value.clone() for name, value in half.items()}
        a, b = torch.randn(2, 32, generator=generator), torch.randn(64, 2, generator=generator)
        weight = part.pop(f"{dense}.weight")
        wanted.append(weight + b @ a / 2)
        part |= {f"{dense}.original.weight": weight, f"{dense}.matrix_A.0": a, f"{dense}.matrix_B.0": b}
        file = folder / "1" / f"mp_rank_0{rank}_model_states.pt"
        file.unlink()
        torch.save({"module": part}, file)
    convert(folder, "sat", tmp_path / "one")
    merged = load(tmp_path / "one").state_dict()[f"{dense}.weight"]
    torch.testing.assert_close(merged, torch.cat(wanted, dim=1))
    assert load_pretrained(folder, device="cpu").model.state_dict()[f"{dense}.weight"].equal(merged)


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_unmerged_weights_of_ours_keep_their_alpha(golden, load, tmp_path, use_dora):
    """Saved with the matrices beside them, loaded into a wrapped model again, and merged file to file."""
    model = load(golden / "cogvlm-mini")
    settings = LoRASettings(targets=TARGETS, rank=2, alpha=3.0, use_dora=use_dora)
    apply_lora(model, settings)
    _shake(model)
    trained = _logits(model, golden)
    data = {**model.config.to_dict(), "lora": settings.to_dict()}
    save_checkpoint(model, tmp_path / "training", make_config(data), step=20)
    for size in (1, 2):
        written = convert(tmp_path / "training", "sat", tmp_path / f"mp{size}", size=size)
        assert written.name == "20"
        assert "lora" not in json.loads((tmp_path / f"mp{size}" / "model_config.json").read_text())
        assert (_logits(load(tmp_path / f"mp{size}"), golden) - trained).abs().max() <= 1e-5


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("beside", [False, True], ids=["adapter", "beside"])
def test_merged_rows_are_those_of_the_merged_weight(golden, load, tmp_path, monkeypatch, use_dora, beside):
    """Bit for bit, for every rank, though the whole and the rows are made at other times."""
    monkeypatch.setattr(quantised, "_CHUNK", 7 * 64)
    model = load(golden / "cogvlm-mini")
    model.requires_grad_(False)
    settings = LoRASettings(targets=TARGETS, rank=2, use_dora=use_dora)
    apply_lora(model, settings)
    _shake(model)
    source, adapter = find_checkpoint(golden / "cogvlm-mini"), None
    if beside:
        save_checkpoint(model, tmp_path, make_config({**model.config.to_dict(), "lora": settings.to_dict()}), step=1)
        source = find_checkpoint(tmp_path)
    else:
        adapter = read_adapter(save_adapter(model, tmp_path, base_model="x"))
    weights = open_weights(source, build_model(make_config(source.config)), adapter=adapter)
    for name in (f"{QKV}.weight", "transformer.layers.2.attention.dense.weight"):
        whole = weights.part(name).read()
        assert not whole.equal(load(golden / "cogvlm-mini").state_dict()[name])
        for size in (1, 2, 4):
            for rank in range(size):
                part, wanted = weights.part(name, rank, size), slice_for_rank(whole, weights.rules[name], rank, size)
                assert part.read().equal(wanted)
                assert torch.cat([part[row : row + 5] for row in range(0, len(wanted), 5)]).equal(wanted)


def test_an_adapter_file_is_small_and_carries_all_that_was_trained(golden, load, tmp_path):
    model = load(golden / "cogvlm-mini")
    model.requires_grad_(False)
    model.get_mixin("eva").boi.requires_grad_(True).data.add_(0.1)
    apply_lora(model, LoRASettings(targets=TARGETS, rank=2, use_dora=True))
    add_ptuning(model, 3)
    _shake(model)
    trained = _logits(model, golden)
    file = save_adapter(model, tmp_path / "20", base_model=str(golden / "cogvlm-mini"), extra={"step": 20})
    assert file == tmp_path / "20" / "adapter.safetensors"
    assert file.stat().st_size < 250_000 < sum(p.numel() for p in model.parameters()) * 4 / 4
    adapter = read_adapter(tmp_path / "20")
    assert adapter.extra == {"step": 20} and adapter.prefix_length == 3 and adapter.lora.rank == 2
    fresh = load_pretrained(tmp_path / "20", device="cpu", dtype="float32").model
    assert (_logits(fresh, golden) - trained).abs().max() <= 1e-5


def test_an_adapter_onto_its_base_through_the_script(golden, load, tmp_path, monkeypatch, capsys):
    model = load(golden / "cogvlm-mini")
    model.requires_grad_(False)
    model.get_mixin("eva").eoi.requires_grad_(True).data.add_(0.1)
    apply_lora(model, LoRASettings(targets=TARGETS, rank=2, alpha=4.0))
    _shake(model)
    trained = _logits(model, golden)
    save_adapter(model, tmp_path / "run" / "20", base_model=str(golden / "cogvlm-mini"), extra={"step": 20})
    (tmp_path / "run" / "latest").write_text("20\n")
    arguments = ["--from_pretrained", tmp_path / "run", "--output", tmp_path / "merged"]
    assert _run(monkeypatch, "merge_lora.py", *arguments) == 0
    assert (tmp_path / "merged" / "latest").read_text() == "20"
    assert (_logits(load(tmp_path / "merged"), golden) - trained).abs().max() <= 1e-5
    two = _two_parts(golden, tmp_path)
    assert _run(monkeypatch, "merge_lora.py", *arguments[:3], tmp_path / "other", "--base", two, "--mp", 2) == 0
    assert (_logits(load(tmp_path / "other"), golden) - trained).abs().max() <= 1e-5
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_an_adapter_is_loaded_with_its_base_and_merged(golden, load, tmp_path, use_dora):
    model = load(golden / "cogvlm-mini")
    model.requires_grad_(False)
    model.get_mixin("eva").eoi.requires_grad_(True).data.add_(0.1)
    apply_lora(model, LoRASettings(targets=TARGETS, rank=2, alpha=4.0, use_dora=use_dora))
    add_ptuning(model, 3)
    _shake(model)
    trained = _logits(model, golden)
    extra = {"step": 20, "version": "vqa"}
    file = save_adapter(model, tmp_path / "run" / "20", base_model=str(golden / "cogvlm-mini"), extra=extra)
    (tmp_path / "run" / "latest").write_text("20\n")
    for path in (tmp_path / "run", file):
        vlm = load_pretrained(path, device="cpu")
        assert vlm.processor.version == "vqa"
        assert not any(".matrix_A." in name for name in vlm.model.state_dict())
        assert not any(parameter.requires_grad for parameter in vlm.model.parameters())
        assert (_logits(vlm.model, golden) - trained).abs().max() <= 1e-5
    written = save_adapter(model, tmp_path / "lost", base_model=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match=r"lost/adapter.safetensors needs the model .*gone'.* does not exist"):
        load_pretrained(written.parent, device="cpu")


def test_adapters_that_do_not_fit(golden, load, tmp_path):
    model = load(golden / "cogvlm-mini")
    model.requires_grad_(False)
    with pytest.raises(CheckpointError, match="nothing to save"):
        save_adapter(model, tmp_path, base_model="x")
    apply_lora(model, LoRASettings(targets=(QKV,), rank=2))
    save_adapter(model, tmp_path, base_model="cogvlm-tiny")
    with pytest.raises(CheckpointError, match=r"LoRA matrices of .* make \[192, 64\], but its weight is \[576, 192\]"):
        load_pretrained(tmp_path, device="cpu")
    agent = load(golden / "cogagent-mini").requires_grad_(False)
    apply_lora(agent, LoRASettings(targets=("transformer.layers.*.cross_attention.*",), rank=2))
    save_adapter(agent, tmp_path, base_model=str(golden / "cogvlm-mini"))
    with pytest.raises(CheckpointError, match=r"not for the model in .*cogvlm-mini"):
        load_pretrained(tmp_path, device="cpu")
    with pytest.raises(CheckpointError, match=r"there is no adapter at .*nowhere"):
        read_adapter(tmp_path / "nowhere")
    (tmp_path / "adapter.safetensors").write_bytes(b"12345678 nonsense")
    with pytest.raises(CheckpointError, match="is damaged"):
        read_adapter(tmp_path)
    with pytest.raises(CheckpointError, match="is no adapter of this project"):
        read_adapter(golden / "cogvlm-mini" / "reference.safetensors")


def test_a_prefix_of_another_model_is_refused_by_name(golden, load, tmp_path):
    model = load(golden / "cogvlm-mini")
    model.requires_grad_(False)
    add_ptuning(model, 3)
    save_adapter(model, tmp_path, base_model="cogvlm-tiny")
    with pytest.raises(CheckpointError, match=r"prefix in .*adapter.safetensors does not fit this CogVLMModel"):
        load_pretrained(tmp_path, device="cpu")


def test_a_prefix_cannot_be_merged(golden, load, tmp_path):
    model = load(golden / "cogvlm-mini")
    model.requires_grad_(False)
    add_ptuning(model, 3)
    save_adapter(model, tmp_path, base_model="x")
    with pytest.raises(CheckpointError, match="p-tuning prefix, which is no weight"):
        convert(golden / "cogvlm-mini", "sat", tmp_path / "o", adapter=read_adapter(tmp_path))


def test_the_script_merges_parts_and_ends_with_one_line(golden, whole, tmp_path, monkeypatch, capsys):
    two = _two_parts(golden, tmp_path)
    assert _run(monkeypatch, "merge_model.py", "--from_pretrained", two, "--output", tmp_path / "one") == 0
    weights = read_weights(find_checkpoint(tmp_path / "one").files[0])
    assert all(weights[name].equal(value) for name, value in whole.items())
    capsys.readouterr()
    assert _run(monkeypatch, "merge_model.py", "--from_pretrained", tmp_path / "no", "--output", tmp_path / "o") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and "does not exist" in err


def test_cogagent_too(golden, tmp_path):
    if not (golden / "cogagent-mini-mp2").is_dir():
        convert(golden / "cogagent-mini", "sat", tmp_path / "two", size=2)
        source = tmp_path / "two"
    else:
        source = _two_parts(golden, tmp_path, "cogagent-mini")
    convert(source, "sat", tmp_path / "one")
    weights = read_weights(find_checkpoint(tmp_path / "one").files[0])
    expected = read_weights(find_checkpoint(golden / "cogagent-mini").files[0])
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(value) for name, value in expected.items())
