"""The public contract: load_pretrained, list_models."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sat_models import registry
from sat_models.errors import CheckpointError, ConfigError, InputError, UnknownNameError
from sat_models.generation.sampling import SamplingOptions
from sat_models.models.families import family_of
from sat_models.zoo import list_models, load, load_pretrained, open_vlm
from sat_models.zoo.vlm import SamplingKeywords

MINI = Path(__file__).resolve().parent / "golden" / "cogvlm-mini"
CASES = json.loads((MINI / "reference.json").read_text())["cases"]


@pytest.fixture(scope="module")
def vlm():
    return load_pretrained(MINI, device="cpu", dtype="float32")


@pytest.fixture
def folder(tmp_path):
    """A copy that a test may change."""
    target = tmp_path / "mine"
    shutil.copytree(MINI, target, ignore=shutil.ignore_patterns("reference.*"))
    return target


def _edit_config(folder, **changes) -> None:
    path = folder / "model_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_loaded_is_for_inference(vlm):
    assert not vlm.model.training
    assert not any(weight.requires_grad for weight in vlm.model.parameters())
    assert vlm.device == torch.device("cpu") and vlm.dtype == torch.float32
    assert vlm.tokenizer_file == MINI / "tokenizer.model"


def test_dtype_and_forms_of_path(folder):
    for path in (folder / "1", str(folder / "1" / "mp_rank_00_model_states.pt")):
        loaded = load_pretrained(path, device="cpu", dtype="bfloat16")
        assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}
        assert loaded.processor.tokenizer


@pytest.mark.parametrize("name", ["FineTuneTrainCogVLMModel", "FineTuneTestCogVLMModel"])
def test_classes_of_the_originals_fine_tuning(folder, name, vlm):
    _edit_config(folder, model_class=name)
    loaded = load_pretrained(folder, device="cpu")
    assert type(loaded.model).__name__ == name
    assert loaded.model.state_dict().keys() == vlm.model.state_dict().keys()


def test_unknown_classes_say_so(folder):
    _edit_config(folder, model_class="CogVLMModell")
    with pytest.raises(UnknownNameError, match="Did you mean CogVLMModel"):
        load_pretrained(folder, device="cpu")
    _edit_config(folder, model_class="CogVLMModel", num_layers=0)
    with pytest.raises(ConfigError, match="num_layers must be a positive integer"):
        load_pretrained(folder, device="cpu")


def test_a_name_lies_under_sat_home(folder, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    folder.rename(home / "cogvlm-chat-v1.1")
    monkeypatch.setenv("SAT_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    for name in ("cogvlm-chat", "cogvlm-chat-v1.1", "THUDM/cogvlm-chat-hf"):
        loaded = load_pretrained(name, device="cpu")
        assert loaded.checkpoint.folder == home / "cogvlm-chat-v1.1"
        assert loaded.processor.version == "chat_old"


def test_a_name_may_be_a_zip_under_sat_home(folder, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    shutil.make_archive(str(home / "cogvlm-base-224"), "zip", folder.parent, folder.name)
    monkeypatch.setenv("SAT_HOME", str(home))
    assert load_pretrained("cogvlm-base-224", device="cpu").checkpoint.folder == home / "cogvlm-base-224"


def test_absent_weights_say_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_HOME", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        load_pretrained("cogvlm-chat", device="cpu")
    for part in (str(tmp_path / "cogvlm-chat" / "latest"), "cogvlm-chat.zip", "huggingface.co/THUDM/CogVLM", "icence"):
        assert part in str(caught.value)
    with pytest.raises(UnknownNameError, match="Did you mean cogvlm-chat"):
        load_pretrained("cogvlm-chta", device="cpu")
    with pytest.raises(CheckpointError, match=r"does not exist. Give a SAT folder"):
        load_pretrained(tmp_path / "nothing", device="cpu")


@pytest.fixture
def to_come(monkeypatch):
    """A registered model whose code is still to come."""
    spec = dataclasses.replace(registry.resolve("cogvlm-chat"), name="later-vlm", aliases=(), available=False)
    monkeypatch.setitem(registry._TABLE, spec.name, spec)
    monkeypatch.setattr(registry, "_SPECS", (*registry._SPECS, spec))
    return spec


def test_what_is_to_come_says_so(folder, tmp_path, to_come):
    with pytest.raises(ConfigError, match="later-vlm is known, but"):
        load_pretrained(to_come.name, device="cpu")
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="Hugging Face folder"):
        load_pretrained(hub, device="cpu")


def test_bad_device_dtype_and_version_fail_before_anything_is_read(tmp_path):
    for wrong in ({"device": "gpu"}, {"dtype": "float8"}):
        with pytest.raises(ConfigError):
            load_pretrained(tmp_path, **wrong)
    with pytest.raises(UnknownNameError, match="prompt version"):
        load_pretrained(tmp_path, device="cpu", version="chatt")


def test_precedence_of_prompt_styles(folder, caplog, tmp_path):
    assert load_pretrained(folder, device="cpu").processor.version == "base"
    named = folder.rename(tmp_path / "cogvlm-chat")
    assert load_pretrained(named, device="cpu").processor.version == "chat_old"
    _edit_config(named, text_processor_version="vqa")
    with caplog.at_level(logging.WARNING):
        assert load_pretrained(named, device="cpu").processor.version == "vqa"
        assert load_pretrained(named, device="cpu", version="vqa").processor.version == "vqa"
        assert "was trained with" not in caplog.text
        assert load_pretrained(named, device="cpu", version="chat").processor.version == "chat"
    assert "version 'chat' was asked for, but this checkpoint was trained with 'vqa'" in caplog.text


def test_without_a_tokenizer_logits_work_and_text_names_the_flag(folder):
    (folder / "tokenizer.model").rename(folder.parent / "elsewhere.model")
    loaded = load_pretrained(folder, device="cpu")
    assert loaded.model(input_ids=torch.tensor([[1, 5, 7]]))[0].shape == (1, 3, 488)
    with pytest.raises(InputError, match="--local_tokenizer"):
        loaded.generate(None, "hello")
    given = load_pretrained(folder, device="cpu", local_tokenizer=folder.parent / "elsewhere.model")
    assert given.generate(None, "hello", max_new_tokens=2).token_ids
    with pytest.raises(InputError, match="does not exist"):
        load_pretrained(folder, device="cpu", local_tokenizer=folder / "absent.model")


def test_a_tokenizer_of_another_model_is_refused(folder, monkeypatch):
    large = SimpleNamespace(vocab_size=9999)
    family = dataclasses.replace(family_of("CogVLMModel"), tokenizer=lambda config, file: large)
    monkeypatch.setattr(open_vlm, "family_of", lambda name: family)
    with pytest.raises(ConfigError, match="9999 pieces, but the model's vocabulary is 488"):
        load_pretrained(folder, device="cpu")


def test_the_list(to_come):
    assert "cogvlm-tiny" in list_models() and to_come.name in list_models()
    assert "cogvlm-tiny" in list_models(available_only=True) and to_come.name not in list_models(available_only=True)


@pytest.mark.parametrize("size", [3, 8])
def test_a_number_of_processes_that_does_not_divide(vlm, size):
    with pytest.raises(ConfigError, match=rf"model-parallel size {size} does not divide"):
        vlm.config.check_model_parallel(size)


def test_rotary_angles_in_fp32_are_asked_for(folder):
    usual = load_pretrained(folder, device="cpu", dtype="bfloat16")
    precise = load_pretrained(folder, device="cpu", dtype="bfloat16", rotary_table="fp32")
    ids = {"input_ids": torch.arange(3, 203)[None]}
    tables = [vlm.model.get_mixin("rotary").rotary_emb.table(300)[0].dtype for vlm in (usual, precise)]
    assert tables == [torch.bfloat16, torch.float32]
    assert not usual.model(**ids)[0].equal(precise.model(**ids)[0])
    with pytest.raises(ConfigError, match="rotary_table is 'fp16'; allowed: model, fp32"):
        load_pretrained(folder, device="cpu", rotary_table="fp16")


def test_options_of_an_answer_are_those_of_sampling(vlm):
    fields = {field.name for field in dataclasses.fields(SamplingOptions)}
    assert fields == SamplingKeywords.__optional_keys__
    with pytest.raises(TypeError, match="temprature"):
        vlm.generate(None, "hello", temprature=0.5)
    with pytest.raises(InputError, match="top_p"):
        vlm.stream(None, "hello", top_p=2.0)


def test_what_callers_have_at_hand_is_taken() -> None:
    """Open files, arrays, no history, numbers of numpy; one file for several questions."""
    vlm = load_pretrained(MINI, device="cpu", dtype="float32")
    path, many = MINI / "image.png", np.int64(4)
    file, pixels = io.BytesIO(path.read_bytes()), np.asarray(Image.open(path).convert("RGB"))
    expected = vlm.generate(path, "Where?", max_new_tokens=4).token_ids
    for image in (file, pixels, [pixels], file):
        assert vlm.generate(image, "Where?", history=None, max_new_tokens=many).token_ids == expected
    batch = vlm.generate_batch([file, pixels, file], ["Where?"] * 3, histories=[None, (), []], max_new_tokens=many)
    assert [answer.token_ids for answer in batch] == [expected] * 3


def test_system_text_and_tiles_in_every_way_to_ask(folder):
    """A style with a place for a system text, and a model that does not cut images."""
    _edit_config(folder, text_processor_version="llava_v0")
    vlm, image = load_pretrained(folder, device="cpu"), MINI / "image.png"
    asked = {system: vlm.generate(image, "What?", system=system, max_new_tokens=6) for system in (None, "", "Be kind.")}
    assert len({answer.prompt_tokens for answer in asked.values()}) == 3
    for system, answer in asked.items():
        given = {"system": system, "max_tiles": 1, "max_new_tokens": 6}
        assert "".join(vlm.stream(image, "What?", **given)) == answer.text
        assert [each.token_ids for each in vlm.generate_batch([image] * 2, ["What?"] * 2, **given)] == [
            answer.token_ids
        ] * 2
    marked = vlm.generate(image, "<image>What?", max_new_tokens=1).prompt_tokens
    assert marked < asked[None].prompt_tokens, "where the mark is, without the line break behind an unmarked image"
    ways = (vlm.generate, vlm.stream, lambda image, query, **given: vlm.generate_batch([image], [query], **given))
    for ask in ways:
        with pytest.raises(InputError, match="does not cut images into tiles"):
            ask(image, "What?", max_tiles=2)
        with pytest.raises(InputError, match="has no place for one"):
            ask(image, "What?", version="chat", system="Be kind.")


def test_what_is_no_answer_is_not_read(vlm):
    for wrong in (None, 7, b"[[001,001,100,100]]"):
        for size in (None, (10, 10)):
            with pytest.raises(InputError, match=r"The answer is .*it must be text"):
                vlm.read(wrong, size)
    assert vlm.read("", (10, 10)).boxes == []


@pytest.mark.parametrize("name", [None, 7, "", ["cogvlm-tiny"], b"cogvlm-tiny"], ids=repr)
def test_what_can_name_no_model_is_refused(name):
    for opened in (load_pretrained, load.load_processor, load.load_config):
        with pytest.raises(InputError, match=r"A model was given as .*Give a name of the zoo, such as cogvlm-tiny"):
            opened(name)


def test_an_argument_of_another_name_is_refused_with_near_ones(vlm):
    with pytest.raises(InputError, match=r"load_pretrained was given 'qunat', .* Did you mean quant"):
        load_pretrained(MINI, qunat=4)
    with pytest.raises(InputError, match=r"load_pretrained was given 'xyzzy'.* It takes name_or_path, device, dtype"):
        load_pretrained(MINI, xyzzy=4)
    with pytest.raises(InputError, match=r"generate was given 'temprature'.* Did you mean temperature"):
        vlm.generate(None, "Hi", temprature=1.0)
    with pytest.raises(InputError, match=r"stream was given 'images'.* Did you mean image"):
        vlm.stream(None, "Hi", images=None)
    with pytest.raises(InputError, match=r"generate_batch was given 'max_row'.* Did you mean max_rows"):
        vlm.generate_batch([None], ["Hi"], max_row=1)
