"""Hugging Face folders are told apart by what their config says, and others are refused by their right names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.huggingface import form_of_class
from sat_models.errors import ConfigError
from sat_models.models.families import form_of_config, forms
from sat_models.zoo import load_pretrained

OTHERS = Path(__file__).parent / "other_models"
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
NAMES = {
    "glm4.1v": "GLM-4.1V",
    "glm4": "a ChatGLM or GLM-4 without images",
    "internvl1": "InternVL 1.0",
}


@pytest.mark.parametrize(("file", "name"), NAMES.items())
def test_a_model_to_come_is_refused_by_its_name(file: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((OTHERS / f"{file}.json").read_text())
    with pytest.raises(ConfigError, match=f"folder of {name}, which the zoo cannot read yet; known: CogVLMForCausalLM"):
        load_pretrained(tmp_path, device="cpu")


def test_every_config_here_is_looked_at() -> None:
    assert {path.stem for path in OTHERS.iterdir()} == set(NAMES)


@pytest.mark.parametrize(
    "name", ["cogvlm-mini-hf", "cogagent-mini-hf", "cogvlm2-mini", "glm4v-mini", "xcomposer2-mini"]
)
def test_what_is_there_is_still_found(name: str) -> None:
    data = json.loads((GOLDEN / name / "config.json").read_text())
    assert form_of_config(data, name).architecture == data["architectures"][0]
    assert find_checkpoint(GOLDEN / name).config["model_class"] == form_of_config(data, name).model_class


def test_a_tiled_xcomposer2_that_calls_itself_internlm2_is_found_by_its_right_name() -> None:
    folder = GOLDEN / "xcomposer2-4khd-mini"
    data = json.loads((folder / "config.json").read_text())
    assert data["architectures"] == ["InternLM2ForCausalLM"]
    assert form_of_config(data, "x").architecture == "InternLMXComposer2ForCausalLM"
    assert find_checkpoint(folder).config["tiling"] == "4khd"


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["InternLM2ForCausalLM"], "auto_map": {}},  # a plain InternLM2
        {"architectures": None, "auto_map": ["x"]},
        {"architectures": [["CogVLMForCausalLM"]], "auto_map": {"AutoModel": 3}},
        {"architectures": {}},
    ],
)
def test_no_nonsense_is_a_traceback(change: dict[str, Any], tmp_path: Path) -> None:
    data = json.loads((GOLDEN / "xcomposer2-4khd-mini" / "config.json").read_text())
    data = {**data, "auto_map": None, **change}
    (tmp_path / "config.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"of another model: config\.json has architectures"):
        find_checkpoint(tmp_path)


def test_the_class_in_auto_map_alone_will_do() -> None:
    data = json.loads((GOLDEN / "cogvlm-mini-hf" / "config.json").read_text())
    mapped = {"AutoModelForCausalLM": "modeling_cogvlm.CogVLMForCausalLM"}
    assert form_of_config({**data, "architectures": None, "auto_map": mapped}, "x").architecture == "CogVLMForCausalLM"


@pytest.mark.parametrize("name", ["MiniGPT4Model", "VisualGLMModel"])
def test_a_form_is_that_of_the_own_family_not_of_the_llama_beneath(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no Hugging Face form; those that have: CogVLMModel"):
        form_of_class(name)
    assert form_of_class("FineTuneTrainCogAgentModel").architecture == "CogAgentForCausalLM"
    assert form_of_class("LLaMAModel").architecture == "LlamaForCausalLM"


def test_a_layout_that_a_family_is_not_written_in() -> None:
    assert form_of_class("LLaVAModel", "transformers").architecture == "LlavaForConditionalGeneration"
    with pytest.raises(ConfigError, match="LLaVAModel is not written in the layout 'original'; allowed: transformers"):
        form_of_class("LLaVAModel", "original")


def test_a_config_of_two_models_is_refused() -> None:
    data = {"architectures": ["CogVLMForCausalLM", "LlavaForConditionalGeneration"]}
    with pytest.raises(ConfigError, match="could be of CogVLMForCausalLM and LlavaForConditionalGeneration"):
        form_of_config(data, "x")


@pytest.mark.parametrize("name", ["cogvlm-mini-hf", "cogvlm2-mini", "glm4v-mini"])
def test_only_its_own_form_reads_a_config(name: str) -> None:
    """CogVLM2 has CogVLM's class name, and GLM-4V CogVLM2's tower."""
    data = json.loads((GOLDEN / name / "config.json").read_text())
    assert [form.model_class for form in forms() if form.fits(data)] == [form_of_config(data, name).model_class]


def test_a_glm4_with_images_by_either_of_its_class_names() -> None:
    data = json.loads((GOLDEN / "glm4v-mini" / "config.json").read_text())
    for named in ({"architectures": ["ChatGLMForConditionalGeneration"]}, {"auto_map": None}, {"architectures": None}):
        assert form_of_config({**data, **named}, "x").model_class == "GLM4VModel"
    with pytest.raises(ConfigError, match="a ChatGLM or GLM-4 without images, which the zoo cannot read yet"):
        form_of_config({**data, "vision_config": None}, "x")
