"""Names, aliases, sizes."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import torch

from sat_models import registry, runtime
from sat_models.config import TASKS, read_json
from sat_models.errors import ConfigError, UnknownNameError
from sat_models.models.build import build_model, make_config, model_class
from sat_models.zoo import list_models

RELEASED = [spec for spec in registry.specs() if not spec.bundled]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("cogvlm-chat-v1.1", "cogvlm-chat"),
        ("THUDM/cogvlm-chat-hf", "cogvlm-chat"),
        ("zai-org/cogvlm-chat-hf", "cogvlm-chat"),
        ("cogvlm-grounding-generalist-v1.1", "cogvlm-grounding-generalist"),
        ("THUDM/cogvlm-grounding-generalist", "cogvlm-grounding-generalist"),
        ("THUDM/cogvlm-grounding-generalist-hf", "cogvlm-grounding-generalist"),
        ("THUDM/cogvlm-grounding-base-hf", "cogvlm-grounding-base"),
        ("THUDM/cogvlm-base-224-hf", "cogvlm-base-224"),
        ("THUDM/cogvlm-base-490-hf", "cogvlm-base-490"),
        ("THUDM/cogagent-chat-hf", "cogagent-chat"),
        ("zai-org/cogagent-vqa-hf", "cogagent-vqa"),
        ("cogvlm-tiny", "cogvlm-tiny"),
        ("THUDM/visualglm-6b", "visualglm-6b"),
        ("liuhaotian/llava-v1.5-7b", "llava-v1.5-7b"),
        ("llava-hf/llava-1.5-13b-hf", "llava-v1.5-13b"),
        ("OpenGVLab/InternVL2-8B", "internvl2-8b"),
        ("OpenGVLab/InternVL3-8B", "internvl3-8b"),
        ("OpenGVLab/InternVL3-8B-hf", "internvl3-8b"),
        ("THUDM/CogView3-Plus-3B", "cogview3-plus-3b"),
        ("coglm", "cogview2"),
        ("THUDM/CogVideoX-5b-I2V", "cogvideox-5b-i2v"),
        ("zai-org/CogVideoX1.5-5B", "cogvideox1.5-5b"),
        ("cogvideo-stage1", "cogvideo"),
    ],
)
def test_every_name_that_users_type(given, name):
    assert registry.resolve(given).name == name


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("cogagent-chat", "chat"),
        ("cogagent-vqa", "chat_old"),
        ("cogvlm-chat-v1.1", "chat_old"),
        ("cogvlm-grounding-generalist", "base"),
        ("cogvlm-base-224", "base"),
        ("cogvlm-base-490", "base"),
        ("visualglm-6b", "glm_zh"),
        ("llava-v1.5-7b", "llava_v1"),
        ("llava-v1.0-7b", "llava_v0"),
        ("minigpt4-13b", "minigpt4"),
        ("minigpt-v2", "minigpt4_llama2"),
        ("internvl-chat-v1-2", "Hermes-2"),
        ("internvl2-8b", "internlm2-chat"),
        ("internvl2_5-78b", "internvl2_5"),
    ],
)
def test_the_usual_prompt_style_of_each(name, version):
    assert registry.resolve(name).default_version == version


def test_an_unknown_name_lists_near_ones():
    with pytest.raises(UnknownNameError, match=r"Unknown model 'cogvlm-chatt'. Did you mean cogvlm-chat\b"):
        registry.resolve("cogvlm-chatt")
    with pytest.raises(UnknownNameError, match="collection of weights; name one of them: cogvlm-chat, "):
        registry.resolve("THUDM/CogVLM")
    with pytest.raises(UnknownNameError, match="Did you mean CogVLMModel"):
        model_class("CogVLModel")


def test_a_name_cannot_be_registered_twice():
    spec = registry.resolve("cogvlm-chat")
    with pytest.raises(ValueError, match="registered twice"):
        registry._register((spec, spec))


@pytest.mark.parametrize("spec", RELEASED, ids=lambda spec: spec.name)
def test_the_config_agrees_with_the_entry(spec):
    data = read_json(registry.config_path(spec.name))
    if spec.task != "dialogue":
        width, height = make_config(data).usual_size
        assert height == spec.image_size and spec.default_version is None
        assert width == {480: 720, 768: 1360}[height] if spec.name.startswith("cogvideox") else width == height
        return
    assert data["eva_args"]["image_size"] == [spec.image_size] * 2
    assert data.get("cross_image_pix") == spec.cross_image_size
    assert data.get("text_processor_version", spec.default_version) == spec.default_version
    if spec.available:
        assert make_config(data).image_size == spec.image_size


def test_configs_are_found_in_an_installed_wheel(tmp_path, monkeypatch):
    """setup.py installs the checkout's configs/ as sat_models/configs."""
    expected = registry.config_path("cogvlm-chat")
    package = tmp_path / "site" / "sat_models"
    shutil.copytree(expected.parents[1], package / "configs")
    monkeypatch.setattr(registry, "_PACKAGE", package)
    assert registry.config_path("cogvlm-chat").read_bytes() == expected.read_bytes()
    shutil.rmtree(package / "configs")
    with pytest.raises(ConfigError, match="cogvlm-chat is missing"):
        registry.config_path("cogvlm-chat")


@pytest.mark.parametrize("name", ["cogvlm-chat", "cogvlm-base-224"])
def test_the_released_model_has_its_number_of_parameters(name):
    runtime.init_model_parallel(1)
    model = build_model(make_config(read_json(registry.config_path(name))), dtype=torch.bfloat16)
    positions = (490 // 14) ** 2 - (registry.resolve(name).image_size // 14) ** 2
    assert sum(weight.numel() for weight in model.parameters()) == 17_639_685_376 - positions * 1792


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("visualglm-6b", 7_802_193_408),
        ("llava-v1.5-7b", 7_063_427_072 - 2 * 64 * 4096),  # the hub's form has 64 more words
        ("minigpt4-7b", 7_832_679_936),
        ("internvl2-1b", 938_158_976),
        ("internvl2-8b", 8_075_365_376),
        ("internvl-chat-v1-5", 25_514_186_112),
        ("cogview3-plus-3b", 2_848_836_672),
        ("cogview2", 5_902_307_328),
        ("cogvideox-2b", 1_693_783_872),
        ("cogvideox1.5-5b-i2v", 5_571_594_880),
        ("cogvideo", 7_721_127_936),
    ],
)
def test_the_other_released_models_have_theirs(name, count):
    runtime.init_model_parallel(1)
    model = build_model(make_config(read_json(registry.config_path(name))), dtype=torch.bfloat16)
    assert sum(weight.numel() for weight in model.parameters()) == count


def test_what_is_fetched_for_a_name_of_the_hub():
    llava = registry.resolve("llava-v1.5-7b")
    assert llava.repository("liuhaotian/llava-v1.5-7b") == "liuhaotian/llava-v1.5-7b"
    assert llava.repository("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"
    assert registry.resolve("cogvlm-chat").repository("zai-org/cogvlm-chat-hf") == "zai-org/cogvlm-chat-hf"
    assert registry.resolve("visualglm-6b").repository("THUDM/visualglm-6b") is None


def test_a_task_is_that_of_the_config():
    for spec in registry.specs():
        assert spec.task in TASKS
        assert spec.task == make_config(read_json(registry.config_path(spec.name))).TASK
    named = [name for task in TASKS for name in list_models(task=task)]
    assert sorted(named) == sorted(list_models()) and "cogvideo" in list_models(task="film")
    assert "cogview3-plus-3b" in list_models(task="drawing") and "cogvlm-tiny" in list_models(task="dialogue")
    with pytest.raises(UnknownNameError, match=r"task 'films'\. Did you mean film"):
        list_models(task="films")


def test_building_on_meta_does_not_import_torchs_compiler():
    code = (
        "import sys; from sat_models import registry, runtime\n"
        "from sat_models.config import TASKS, read_json\n"
        "from sat_models.models.build import build_model, make_config\n"
        "runtime.init_model_parallel(1)\n"
        "build_model(make_config(read_json(registry.config_path('cogvlm-chat'))))\n"
        "sys.exit('sympy' in sys.modules)\n"
    )
    root = registry._PACKAGE.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=600).returncode == 0
