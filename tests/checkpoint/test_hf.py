"""Hugging Face folders: read, written, and refused when something is wrong with them."""

from __future__ import annotations

import json
import logging
import runpy
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixins.heads import HeadLayout
from sat_models.checkpoint import hf_writer
from sat_models.checkpoint import io as checkpoint_io
from sat_models.checkpoint.convert import convert, save_hf
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.io import read_weights
from sat_models.checkpoint.source import open_source
from sat_models.checkpoint.verify import same_logits
from sat_models.config import read_json
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.build import make_config
from sat_models.models.cogagent import keys as cogagent_keys
from sat_models.models.cogvlm import keys as cogvlm_keys
from sat_models.models.common.hf_form import Joined, KeyTable, Packed, Stacked
from sat_models.zoo import load_pretrained

NAMES = ("cogvlm-mini", "cogagent-mini")
KEYS = {"cogvlm-mini": cogvlm_keys, "cogagent-mini": cogagent_keys}
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
INV_FREQ = "mixins.rotary.rotary_emb.inv_freq"


@pytest.fixture
def hub(golden, tmp_path) -> Path:
    """A copy of CogVLM's Hugging Face folder that a test may damage."""
    return Path(shutil.copytree(golden / "cogvlm-mini-hf", tmp_path / "hub"))


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def _edit_shard(folder: Path, change) -> None:
    """Rewrite all weights as one file after `change`."""
    weights = _weights(folder)
    change(weights)
    for file in folder.glob("model*"):
        file.unlink()
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_style_is_the_templates(golden, name):
    vlm = load_pretrained(golden / f"{name}-hf", device="cpu", dtype="float32")
    assert vlm.processor.version == {"cogvlm-mini": "chat_old", "cogagent-mini": "chat"}[name]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_in_the_table_both_ways(golden, name):
    sat = read_weights(golden / name / "1" / "mp_rank_00_model_states.pt")
    hf = _weights(golden / f"{name}-hf")
    keys = KEYS[name]
    assert {keys.to_hf(key): key for key in sat if key != INV_FREQ} == {key: keys.to_sat(key) for key in hf}
    assert keys.to_sat("model.layers.7.self_attn.rotary_emb.inv_freq") == INV_FREQ
    assert keys.KEYS.all_hf(INV_FREQ, 2)[1] == "model.layers.1.self_attn.rotary_emb.inv_freq"
    for wrong in ("model.layers.0.nothing.weight", "model.layers.{}.input_layernorm.weight", "mixins.eva.boi"):
        with pytest.raises(CheckpointError, match=wrong.split(".")[-2]):
            keys.to_sat(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_sat_to_hf_to_sat_loses_nothing(golden, tmp_path, name):
    hub = convert(golden / name, "hf", tmp_path / "hub")
    index = read_json(hub / "model.safetensors.index.json")
    wanted, written = _weights(golden / f"{name}-hf"), _weights(hub)
    tables = {key for key in written if key.endswith("inv_freq")}
    assert written.keys() - tables == wanted.keys() and len(tables) == 3
    assert index["weight_map"].keys() == written.keys()
    assert all(written[key].equal(value) for key, value in wanted.items())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in written.values())
    assert (hub / "tokenizer.model").is_file() and (hub / "README.md").is_file()
    back = find_checkpoint(convert(hub, "sat", tmp_path / "back").parent)
    original = find_checkpoint(golden / name)
    assert make_config(back.config) == make_config(original.config)
    before, after = original.read()[0], back.read()[0]
    assert before.keys() == after.keys()
    assert all(after[key].equal(value) and after[key].dtype == value.dtype for key, value in before.items())
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", NAMES)
def test_hf_becomes_the_two_parts_of_the_original_loader(golden, tmp_path, name):
    convert(golden / f"{name}-hf", "sat", tmp_path / "two", size=2)
    for rank in (0, 1):
        file = f"1/mp_rank_0{rank}_model_states.pt"
        given, wanted = read_weights(tmp_path / "two" / file), read_weights(golden / f"{name}-mp2" / file)
        assert given.keys() == wanted.keys()
        assert all(given[key].equal(value) for key, value in wanted.items())


def test_two_parts_become_hf_in_small_shards(golden, tmp_path):
    two = Path(shutil.copytree(golden / "cogvlm-mini-mp2", tmp_path / "two"))
    shutil.copy(golden / "cogvlm-mini" / "model_config.json", two)
    hub = save_hf(two, tmp_path / "hub", shard_bytes=300_000)
    files = sorted(file.name for file in hub.glob("*.safetensors"))
    assert len(files) > 5 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    written = _weights(hub)
    assert all(written[key].equal(value) for key, value in _weights(golden / "cogvlm-mini-hf").items())
    with pytest.raises(CheckpointError, match="exists already"):
        save_hf(two, hub)


def test_a_model_in_memory_and_another_dtype(golden, tmp_path):
    vlm = load_pretrained(golden / "cogagent-mini-hf", device="cpu", dtype="float32")
    hub = save_hf(vlm.model, tmp_path / "hub", config=vlm.config, dtype=torch.bfloat16)
    assert read_json(hub / "config.json")["torch_dtype"] == "bfloat16"
    written = _weights(hub)
    assert all(written[key].equal(value.bfloat16()) for key, value in _weights(golden / "cogagent-mini-hf").items())
    with pytest.raises(ConfigError, match="config"):
        save_hf(vlm.model, tmp_path / "other")


def test_reading_maps_the_file(hub):
    weight = find_checkpoint(hub).read()[0]["transformer.word_embeddings.weight"]
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(hub) in line]
    bounds = [[int(end, 16) for end in line[0].split("-")] for line in maps]
    assert any(start <= weight.data_ptr() < stop for start, stop in bounds)


def test_prompt_versions_and_what_hugging_face_cannot_say(golden):
    sat = read_json(golden / "cogvlm-mini" / "model_config.json")
    for version, template in (("chat_old", "chat"), ("vqa", "vqa"), ("base", "base"), ("chat", None)):
        given = {**sat, "text_processor_version": version, "model_class": "FineTuneTestCogVLMModel", "note": [1]}
        hf = cogvlm_keys.config_to_hf(given)
        assert hf.get("template_version") == template
        assert make_config(cogvlm_keys.config_to_sat(json.loads(json.dumps(hf)))) == make_config(given)
    agent = read_json(golden / "cogagent-mini" / "model_config.json") | {"is_decoder": [True, False, True]}
    assert make_config(cogagent_keys.config_to_sat(cogagent_keys.config_to_hf(agent))) == make_config(agent)
    hf = read_json(golden / "cogvlm-mini-hf" / "config.json")
    with pytest.raises(ConfigError, match="template_version 'chta'"):
        cogvlm_keys.config_to_sat({**hf, "template_version": "chta"})
    with pytest.raises(ConfigError, match="lacks the key intermediate_size"):
        cogvlm_keys.config_to_sat({key: value for key, value in hf.items() if key != "intermediate_size"})


def test_missing_extra_and_misshapen_names_come_as_a_list(hub):
    def damage(weights):
        del weights["model.norm.weight"]
        weights["model.odd.weight"] = torch.zeros(1)
        weights["mixins.eva.boi"] = torch.zeros(1)
        weights["lm_head.weight"] = weights["lm_head.weight"][:, 1:].contiguous()

    _edit_shard(hub, damage)
    for act in (lambda: load_pretrained(hub, device="cpu"), lambda: convert(hub, "sat", hub.with_name("out"))):
        with pytest.raises(CheckpointError) as caught:
            act()
        message = str(caught.value)
        assert "1 missing: model.norm.weight" in message and "1 of a wrong shape: lm_head.weight [488, 63]" in message
        assert "2 unexpected: mixins.eva.boi (no weight of CogVLMForCausalLM), model.odd.weight" in message
        assert "config.json" in message and "model_config" not in message
    assert not hub.with_name("out").exists()


def test_tables_of_the_layers_must_agree(hub):
    rows = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.full((8,), float(i)) for i in range(3)}
    _edit_shard(hub, lambda weights: weights.update(rows))
    with pytest.raises(CheckpointError, match="inv_freq differs"):
        load_pretrained(hub, device="cpu")


def test_damaged_folders_say_what_is_wrong(hub, tmp_path):
    shard = hub / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    for damaged, message in (
        (content[:-100], "is damaged or cut off"),
        (b"", "is damaged or cut off"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ):
        shard.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_pretrained(hub, device="cpu")
        assert shard.name in str(caught.value)
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"incomplete: {shard.name} missing"):
        load_pretrained(hub, device="cpu")
    shutil.copy(hub / "model-00001-of-00002.safetensors", shard)
    with pytest.raises(CheckpointError, match="which it does not"):
        load_pretrained(hub, device="cpu")
    index = hub / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "../x.safetensors"}}))
    with pytest.raises(CheckpointError, match="refused"):
        load_pretrained(hub, device="cpu")
    (hub / "config.json").write_text('{"architectures": ["BertForMaskedLM"]}')
    with pytest.raises(ConfigError, match="Hugging Face folder of another model"):
        load_pretrained(hub, device="cpu")


def test_nothing_half_is_left(golden, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(hf_writer, "write_tensors", fail)
        with pytest.raises(CheckpointError, match="No space left"):
            save_hf(golden / "cogvlm-mini", tmp_path / "hub")
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1))
    for form in ("hf", "sat"):
        with pytest.raises(CheckpointError, match="GiB free"):
            convert(golden / "cogvlm-mini", form, tmp_path / "hub")
    assert not any(tmp_path.iterdir())


def test_the_script(golden, tmp_path, monkeypatch, capsys):
    handlers, level = list(logging.root.handlers), logging.root.level

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPTS / "convert_checkpoint.py"), run_name="__main__")
        logging.root.handlers[:], logging.root.level = handlers, level
        return ended.value.code or 0

    source, hub, back = golden / "cogagent-mini", tmp_path / "hub", tmp_path / "back"
    assert run("--from", source, "--to", "hf", "--output", hub, "--dtype", "bf16", "--verify") == 0
    assert "logits equal" in capsys.readouterr().out
    assert run("--from", hub, "--to", "sat", "--output", back, "--mp", 2, "--verify") == 0
    assert len(find_checkpoint(back).files) == 2
    assert run("--from", source, "--to", "hf", "--output", hub) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ") and "exists already" in error
    assert run("--from", source, "--to", "hf", "--output", tmp_path / "x", "--mp", 2) == 2


def test_verification_finds_a_difference(golden, tmp_path):
    hub = convert(golden / "cogvlm-mini", "hf", tmp_path / "hub", verify=True)
    _edit_shard(hub, lambda weights: weights["lm_head.weight"].mul_(1.001))
    with pytest.raises(CheckpointError, match="logits that differ from those of"):
        same_logits(open_source(golden / "cogvlm-mini"), open_source(hub))


@pytest.mark.parametrize("form", ["hf", "sat"])
def test_what_fails_verification_is_not_kept(golden, tmp_path, monkeypatch, form):
    """A writer that loses a digit, into a new folder and into one with an older step."""

    def damaged(write):
        def written(weights, *args, **kwargs):
            name = "lm_head.weight" if form == "hf" else "mixins.lm.lm_head.weight"
            return write({**weights, name: weights[name] * 1.001}, *args, **kwargs)

        return written

    place, name = (hf_writer, "write_tensors") if form == "hf" else (checkpoint_io, "_write_file")
    target = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(place, name, damaged(getattr(place, name)))
        with pytest.raises(CheckpointError, match="so it was removed again"):
            convert(golden / "cogvlm-mini", form, target, verify=True)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []
    if form == "sat":
        convert(golden / "cogvlm-mini", form, target)
        before = {file: file.read_bytes() for file in target.rglob("*") if file.is_file()}
        monkeypatch.setattr(place, name, damaged(getattr(place, name)))
        with pytest.raises(CheckpointError, match="so it was removed again"):
            convert(golden / "cogvlm-mini", form, target, verify=True, overwrite=True)
        assert {file: file.read_bytes() for file in target.rglob("*") if file.is_file()} == before


def test_an_id_lies_under_sat_home_or_on_the_hub(hub, tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("SAT_HOME", str(home))
    asked = []

    def snapshot_download(repository, allow_patterns):
        asked.append(repository)
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    with pytest.raises(CheckpointError, match=r"zai-org/cogvlm-grounding-generalist-hf is not on this machine.*Fetch"):
        load_pretrained("zai-org/cogvlm-grounding-generalist", device="cpu")
    assert asked == ["zai-org/cogvlm-grounding-generalist-hf"]
    home.mkdir()
    hub.rename(home / "cogvlm-chat-hf")
    assert load_pretrained("THUDM/cogvlm-chat-hf", device="cpu").checkpoint.folder == home / "cogvlm-chat-hf"
    assert len(asked) == 1


class TestHeadsInKeyTables:
    HEADS = HeadLayout(num_heads=4, num_kv_heads=2, head_dim=3, rotary_dim=3)
    ROWS = torch.arange(8 * 3 * 5).view(24, 5)

    def test_q_k_and_v_are_of_their_own_sizes(self) -> None:
        table = KeyTable({"qkv.weight": Joined(("q.weight", "k.weight", "v.weight"), by_heads=True)})
        table = table.of_heads(self.HEADS)
        parts = [table.hf_value(name, self.ROWS) for name in ("q.weight", "k.weight", "v.weight")]
        assert [len(part) for part in parts] == [12, 6, 6]
        assert table.share("q.weight") == (4, 8) and table.share("v.weight") == (2, 8)
        assert table.sat_value(table.place("q.weight"), parts).equal(self.ROWS)

    def test_packed_rows_are_group_by_group(self) -> None:
        """As InternLM2: for each group its queries, its key, its value."""
        table = KeyTable({"qkv.weight": Packed("wqkv.weight")}).of_heads(self.HEADS)
        packed = table.hf_value("wqkv.weight", self.ROWS)
        groups = packed.view(2, 4, 3, 5)  # two queries, key and value of each group
        assert groups[:, :2].reshape(12, 5).equal(self.ROWS[:12])
        assert groups[:, 2].reshape(6, 5).equal(self.ROWS[12:18]) and groups[:, 3].reshape(6, 5).equal(self.ROWS[18:])
        assert table.sat_value(table.place("wqkv.weight"), [packed]).equal(self.ROWS)
        assert table.hf_value("wqkv.weight", self.ROWS[:, 0]).equal(packed[:, 0]), "biases alike"
        assert table.extended({"a": "b"}).heads == self.HEADS

    def test_weights_stacked_in_one(self) -> None:
        """As GLM-4: the gate above what it gates."""
        rows = {"gate.{i}.weight": Stacked("h.{i}.weight", 0, 2), "up.{i}.weight": Stacked("h.{i}.weight", 1, 2)}
        table = KeyTable(rows)
        places = table.places("h.3.weight")
        assert [place.name for place in places] == ["gate.3.weight", "up.3.weight"]
        gate, up = (place.taken(self.ROWS) for place in places)
        assert gate.equal(self.ROWS[:12]) and table.hf_value("h.3.weight", gate, up).equal(self.ROWS)
        assert table.to_hf("up.3.weight") == "h.3.weight" and table.share("h.3.weight") == (1, 1)
        for wrong in ({"x.{i}": "h.{i}.weight"}, {"x.{i}": Stacked("h.{i}.weight", 1, 2)}):
            with pytest.raises(ValueError, match="stands in the key table twice"):
                KeyTable({**rows, **wrong})
