"""Weights into a model and out of it, and what is said about files that do not fit."""

from __future__ import annotations

import argparse
import os
import pickle
import random
import shutil

import numpy
import pytest
import torch

from sat_models.checkpoint import io
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.io import load_weights, read_weights, save_checkpoint
from sat_models.errors import CheckpointError
from sat_models.models.build import build_model, make_config


def _rewrite(file, change) -> None:
    weights = {name: value.clone() for name, value in read_weights(file).items()}
    change(weights)
    torch.save({"module": weights}, file)


def _same(model, weights) -> bool:
    state = model.state_dict()
    return state.keys() == weights.keys() and all(torch.equal(state[name], weights[name]) for name in weights)


def test_weights_arrive_bit_for_bit(folder, load, whole):
    model = load(folder)
    assert _same(model, whole)
    qkv = model.transformer.layers[0].attention.query_key_value.weight
    assert qkv.model_parallel and qkv.is_contiguous()


def test_weights_are_cast_on_the_way(folder, load, whole):
    model = load(folder, torch.bfloat16)
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    assert _same(model, {name: value.bfloat16() for name, value in whole.items()})


def test_two_parts_load_into_one_process(folder, load, whole, golden):
    for source in (golden / "cogvlm-mini-mp2" / "1").iterdir():
        shutil.copy(source, folder / "1")
    assert _same(load(folder), whole)


def test_the_rotary_buffer_may_be_absent(folder, file, load, whole):
    _rewrite(file, lambda weights: weights.pop("mixins.rotary.rotary_emb.inv_freq"))
    assert _same(load(folder), whole)


def test_training_files_load_and_their_random_states_are_dropped(folder, file, load, whole):
    client_state = {
        "module": dict(whole),
        "iteration": 10,
        "random_rng_state": random.getstate(),
        "np_rng_state": numpy.random.get_state(),
        "torch_rng_state": torch.get_rng_state(),
        "loss": numpy.float64(1.5),
        "args": argparse.Namespace(lr=1e-4),
    }
    torch.save(client_state, file)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    assert _same(load(folder), whole)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_bare_state_dict_and_the_old_file_format(folder, file, load, whole, legacy):
    torch.save(dict(whole), file, _use_new_zipfile_serialization=not legacy)
    assert _same(load(folder), whole)


def test_missing_unexpected_and_misshapen_names_are_listed_together(folder, file, load):
    def change(weights):
        del weights["mixins.eva.boi"]
        for number in range(9):
            weights[f"extra.{number}"] = torch.zeros(1)
        weights["mixins.lm.lm_head.weight"] = torch.zeros(480, 64)

    _rewrite(file, change)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert "1 missing: mixins.eva.boi" in message
    assert "9 unexpected: extra.0" in message and "and 3 more" in message
    assert "mixins.lm.lm_head.weight [480, 64] (the config needs [488, 64])" in message
    assert "model_class CogVLMModel" in message


def test_unmerged_lora_and_lost_parts_get_their_own_remedy(folder, file, load, golden):
    name = "transformer.layers.0.attention.query_key_value"
    _rewrite(file, lambda weights: weights.update({f"{name}.matrix_A.0": torch.zeros(2, 64)}))
    with pytest.raises(CheckpointError, match="LoRA weights that were not merged"):
        load(folder)
    shutil.copy(golden / "cogvlm-mini-mp2" / "1" / file.name, file)
    config = (
        (folder / "model_config.json").read_text().replace('"model_parallel_size": 1,', '"model_parallel_size": 2,', 1)
    )
    (folder / "model_config.json").write_text(config)
    with pytest.raises(CheckpointError, match="model_parallel_size 2, but 1 weight file"):
        load(folder)


def test_parts_that_do_not_belong_together(folder, load, golden):
    for source in (golden / "cogvlm-mini-mp2" / "1").iterdir():
        shutil.copy(source, folder / "1")
    _rewrite(folder / "1" / "mp_rank_01_model_states.pt", lambda weights: weights.pop("mixins.eva.eoi"))
    with pytest.raises(CheckpointError, match=r"holds other names.*mixins.eva.eoi"):
        load(folder)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.999])
def test_a_cut_off_file_is_named(folder, file, load, keep):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=rf"{file.name} is (empty|cut off).*download it again"):
        load(folder)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\x80\x02}q\x00", b"version https://git-lfs\noid 1"])
def test_a_file_that_is_no_checkpoint_is_named(folder, file, load, content):
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file.name} is (damaged|a Git LFS pointer)"):
        load(folder)


@pytest.mark.parametrize("content", [[1, 2], {"module": 3}, {"module": {"x": 1}}, {}])
def test_a_file_without_weights_is_named(folder, file, load, content):
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=file.name):
        load(folder)


class _Evil:
    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_code_is_refused(folder, file, load, tmp_path, legacy):
    content = {"module": {"x": torch.zeros(1)}, "np_rng_state": _Evil(tmp_path / "ran")}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"was refused: reading it would call '(posix|nt)\.mkdir'"):
        load(folder)
    assert not (tmp_path / "ran").exists()


def test_saving_and_loading_again(folder, load, whole, tmp_path):
    model, checkpoint = load(folder), find_checkpoint(folder)
    config, target = make_config(checkpoint.config), tmp_path / "saved"
    save_checkpoint(model, target, config, step=3, tokenizer_file=folder / "tokenizer.model")
    assert sorted(os.listdir(target)) == ["3", "latest", "model_config.json", "tokenizer.model"]
    assert (target / "latest").read_text() == "3" and _same(load(target), whole)
    assert make_config(find_checkpoint(target).config).to_dict() == config.to_dict()
    save_checkpoint(model, target, config, step="release", dtype=torch.bfloat16)
    saved = read_weights(find_checkpoint(target).files[0])
    assert {value.dtype for value in saved.values()} == {torch.bfloat16} and (target / "3").is_dir()


@pytest.mark.parametrize(
    "dies_in", ["start_staging", "write_rank_weights", "publish", "write_json", "point_latest", "rename"]
)
def test_a_crash_while_saving_keeps_the_former_checkpoint(folder, load, whole, tmp_path, monkeypatch, dies_in):
    model, config, target = load(folder), make_config(find_checkpoint(folder).config), tmp_path / "saved"
    save_checkpoint(model, target, config, step=1)

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    if dies_in == "rename":  # between moving the old step away and the new one in
        monkeypatch.setattr(type(target), "rename", _second_call_dies(type(target).rename))
    else:
        monkeypatch.setattr(io, dies_in, die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(model, target, config, step=1)
    monkeypatch.undo()
    assert _same(load(target), whole)
    save_checkpoint(model, target, config, step=2)
    assert find_checkpoint(target).step_folder.name == "2" and _same(load(target), whole)


def _second_call_dies(rename):
    calls = []

    def renamed(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    return renamed


def test_a_place_that_cannot_be_written_says_so(folder, load, tmp_path):
    (tmp_path / "a_file").write_text("")
    with pytest.raises(CheckpointError, match="was not saved; cannot write"):
        save_checkpoint(load(folder), tmp_path / "a_file", make_config(find_checkpoint(folder).config), step=1)


def test_building_on_meta_allocates_nothing_and_cpu_gives_random_weights(folder):
    config = make_config(find_checkpoint(folder).config)
    meta = build_model(config, dtype=torch.bfloat16)
    tensors = [*meta.parameters(), *meta.buffers()]
    assert all(tensor.is_meta and tensor.dtype == torch.bfloat16 for tensor in tensors)
    real = build_model(config, dtype=torch.bfloat16, device="cpu")
    assert not any(tensor.is_meta for tensor in real.parameters())
    assert real.state_dict().keys() == meta.state_dict().keys()
    assert torch.empty(1).device.type == "cpu"


def test_loading_into_a_model_that_has_memory_already(folder, whole):
    checkpoint = find_checkpoint(folder)
    model = build_model(make_config(checkpoint.config), device="cpu")
    load_weights(model, checkpoint, device="cpu")
    assert _same(model, whole)
