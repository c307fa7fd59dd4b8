"""A family from a folder of its own (tests/models/postcard) through every door, with no edit elsewhere."""

from __future__ import annotations

import json
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sat_models import runtime
from sat_models.checkpoint.convert import convert
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.io import save_checkpoint
from sat_models.errors import ConfigError
from sat_models.models import families
from sat_models.models.build import build_model, make_config
from sat_models.models.families import named_groups, prompt_styles, register
from sat_models.processing.layout import collate
from sat_models.training.trainable import TrainablePlan, apply_plan, trainable_table
from sat_models.zoo import VLM, load_pretrained

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from postcard.family import FAMILY
from serving_http import asked, data_url, running

TESTS = Path(__file__).resolve().parents[1]
IMAGE = TESTS / "golden" / "cogvlm-mini" / "image.png"
SIZES = {
    "model_class": "PostcardModel", "num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_kv_heads": 2,
    "inner_hidden_size": 48, "vocab_size": 512, "max_sequence_length": 256, "image_length": 16, "stamp_value": 2.0,
    "eva_args": {
        "num_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "inner_hidden_size": 8, "image_size": [56, 56],
        "patch_size": 14,
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    """The family is there while these tests run."""
    before = dict(families._FAMILIES)
    register(FAMILY)
    yield
    families._FAMILIES.clear()
    families._FAMILIES.update(before)
    named_groups.cache_clear()


@pytest.fixture(scope="module")
def folder(registered: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in SAT layout, with the tokenizer under the family's name for it."""
    runtime.init_model_parallel(1)
    config = make_config(SIZES)
    torch.manual_seed(3)
    model = build_model(config, device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    made = tmp_path_factory.mktemp("postcard") / "postcard"
    save_checkpoint(model, made, config, step=1)
    shutil.copyfile(IMAGE.parent / "tokenizer.model", made / "postcard.model")
    return made


@pytest.fixture(scope="module")
def vlm(folder: Path) -> VLM:
    return load_pretrained(folder, device="cpu", dtype="float32")


def test_it_is_loaded_with_what_is_its_own(vlm: VLM) -> None:
    assert type(vlm.config).__name__ == "PostcardConfig" and vlm.config.stamp_value == 2.0
    assert type(vlm.processor.tokenizer).__name__ == "SmallLetters"
    assert vlm.processor.version == "postcard" and vlm.versions == ("postcard",) and "postcard" in prompt_styles()
    ids = vlm.processor(None, "WHERE are you?").input_ids[0].tolist()
    assert vlm.processor.tokenizer.decode(ids[1:]) == "dear you, where are you? yours, "
    assert vlm.processor.stops() == ("ps",)


def test_it_answers(vlm: VLM) -> None:
    given = {"max_new_tokens": 6}
    result = vlm.generate(IMAGE, "What?", [("Who?", "A dog.")], **given)
    assert result.token_ids and "".join(vlm.stream(IMAGE, "What?", [("Who?", "A dog.")], **given)) == result.text
    (batched,) = vlm.generate_batch([IMAGE], ["What?"], [[("Who?", "A dog.")]], **given)
    assert batched.token_ids == result.token_ids
    other = vlm.model(**vlm.processor(TESTS.parent / "examples" / "1.png", "What?").model_kwargs())[0]
    assert not torch.equal(other, vlm.model(**vlm.processor(IMAGE, "What?").model_kwargs())[0]), "the image counts"


def test_a_training_step(folder: Path) -> None:
    vlm = load_pretrained(folder, device="cpu", dtype="float32")
    trained = apply_plan(vlm.model, TrainablePlan(full=("stamp",), lora=("language",), rank=2))
    assert "mixins.eva.stamp" in trained and any("matrix_A" in name for name in trained)
    assert "stamp" in trainable_table(vlm.model)
    batch = collate(vlm.processor.training_samples(IMAGE, [("Where?", "at the sea")]), vlm.processor.tokenizer.pad_id)
    before = {name: p.detach().clone() for name, p in vlm.model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in vlm.model.parameters() if p.requires_grad], lr=0.5)

    def loss() -> torch.Tensor:
        logits = vlm.model.train()(**batch.model_kwargs())[0]
        return F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100)

    first = loss()
    first.backward()
    optimizer.step()
    assert loss() < first
    moved = {name for name, p in vlm.model.named_parameters() if not torch.equal(p, before[name])}
    assert "mixins.eva.stamp" in moved and moved <= set(trained)


def test_conversion_both_ways(folder: Path, vlm: VLM, tmp_path: Path) -> None:
    convert(folder, "hf", tmp_path / "hf", verify=True)
    data = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert data["architectures"] == ["PostcardForCausalLM"] and data["postcard"]["stamp_value"] == 2.0
    assert find_checkpoint(tmp_path / "hf").config["model_class"] == "PostcardModel"
    convert(tmp_path / "hf", "sat", tmp_path / "sat", verify=True)
    wanted = vlm.generate(IMAGE, "What?", max_new_tokens=5)
    for form in ("hf", "sat"):
        back = load_pretrained(tmp_path / form, device="cpu", dtype="float32")
        assert back.config == vlm.config and back.generate(IMAGE, "What?", max_new_tokens=5) == wanted


def test_the_api_answers(vlm: VLM) -> None:
    pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    from sat_models.serving.api import create_app
    from sat_models.serving.core import ServerCore
    from sat_models.serving.metrics import Metrics

    core = ServerCore(vlm, vlm.engine(), names=["postcard"])
    body = {"model": "postcard", "messages": asked("What?", data_url(IMAGE)), "max_tokens": 5, "temperature": 0}
    with running(create_app(core, Metrics(), keys=(), on_shutdown=core.scheduler.close)) as url:
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        said = json.loads(urllib.request.urlopen(request, timeout=60).read())
    text = vlm.generate(IMAGE, "What?", max_new_tokens=5).text
    assert said["choices"][0]["message"]["content"] == text and text.strip()
    assert said["choices"][0]["message"]["greeting"] == vlm.read(text, (9, 9)).parts["greeting"] == text.split()[0]
    assert core.versions == ("postcard",)


def test_its_folder_needs_no_other_family() -> None:
    for path in (TESTS / "models" / "postcard").glob("*.py"):
        for name in ("cogvlm", "cogagent", "llava", "minigpt4", "visualglm"):
            assert f"sat_models.models.{name}" not in path.read_text()


def test_without_its_entry_it_is_unknown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_FAMILIES", {k: v for k, v in families._FAMILIES.items() if k != "postcard"})
    with pytest.raises(ValueError, match="Unknown model_class 'PostcardModel'"):
        load_pretrained(folder, device="cpu")


def test_a_model_that_does_not_talk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace
    from typing import ClassVar

    from sat_models.config import ModelConfig
    from sat_models.models.common.family import Family
    from sat_models.zoo.load import load_processor

    class BrushConfig(ModelConfig):
        TASK: ClassVar[str] = "drawing"

    brush = SimpleNamespace(__name__="BrushModel", config_class=BrushConfig)
    monkeypatch.setattr(families, "_FAMILIES", dict(families._FAMILIES))
    register(Family(name="brush", models=("BrushModel",), classes=lambda: (brush,), styles={}))
    (tmp_path / "model_config.json").write_text(json.dumps({"model_class": "BrushModel", "strokes": 7}))
    config = make_config({"model_class": "BrushModel", "strokes": 7})
    assert config.to_dict()["strokes"] == 7 and config.TASK == "drawing"
    config.check_model_parallel(8)
    with pytest.raises(ConfigError, match=r"holds a BrushModel, which is for drawing; only models that talk .*llava"):
        load_processor(tmp_path)
