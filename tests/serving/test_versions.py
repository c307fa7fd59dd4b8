"""Every prompt style of the zoo through every door that takes `--version`; an unknown one is refused at each."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from serving_http import EXAMPLE, ROOT

from sat_models import registry
from sat_models.config import read_json
from sat_models.errors import UnknownNameError
from sat_models.models.families import family_of, prompt_styles
from sat_models.serving import cli, server
from sat_models.serving.core import Question, ServerCore
from sat_models.training import settings_files
from sat_models.training.data import VLMDataset
from sat_models.training.records import Record
from sat_models.training.validate import validate
from sat_models.zoo import VLM, load_pretrained
from sat_models.zoo.load import load_processor

STYLES = tuple(prompt_styles())
MODEL = "cogvlm-tiny"
WITH_TOKENS = {
    "glm4v": "glm4v-mini", "Hermes-2": "internvl-mini", "internvl_zh": "internvl-mini",
    "internlm2-chat": "internvl2-mini", "internvl2_5": "internvl3-mini",
    **{style: "xcomposer2-mini" for style in STYLES if style.startswith("xcomposer2")},
}  # fmt: skip
"""Styles whose role tokens the bundled model does not have, and a model that has them."""


def model_of(version: str) -> str:
    return str(ROOT / "tests" / "golden" / WITH_TOKENS[version]) if version in WITH_TOKENS else MODEL


@functools.cache
def vlm_of(model: str) -> VLM:
    return load_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "x.jsonl"
    file.write_text(json.dumps({"image": str(EXAMPLE), "prompt": "What?", "text": "a dog"}) + "\n")
    return file


@pytest.mark.parametrize("version", STYLES)
def test_the_command_line_takes_it(version: str, capfd: pytest.CaptureFixture[str]) -> None:
    given = ["--version", version, "--query", "What?", "--image", str(EXAMPLE), "--max_new_tokens", "2", "--json"]
    assert cli.main([*given, "--from_pretrained", model_of(version)]) == 0
    said = json.loads(capfd.readouterr().out)  # one token or none: in a style of another family a model may end at once
    assert said["finish_reason"] in ("stop", "length") and isinstance(said["token_ids"], list)


@pytest.mark.parametrize("version", STYLES)
def test_server_and_page_answer_with_it(version: str) -> None:
    from sat_models.serving.web import Page

    vlm = vlm_of(model_of(version))
    core = ServerCore(vlm, vlm.engine(), names=[MODEL])
    try:
        request = core.prepare(Question("What?", version=version))
        expected = vlm.processor(None, "What?", version=version).input_ids.tolist()
        assert request.inputs.input_ids.tolist() == expected
        assert request.stops == prompt_styles()[version].stops

        async def last() -> tuple:
            how = {"language": "english", "temperature": 0.0, "top_p": 1.0, "top_k": 1, "tokens": 2, "seed": None}
            states = Page(core).ask("What?", None, [], (None, []), version=version, **how)
            return [state async for state in states][-1]

        chat, talk, *_ = asyncio.run(last())
        assert talk[1] and "Error" not in chat[-1]["content"]
    finally:
        core.scheduler.close()


@pytest.mark.parametrize("version", STYLES)
def test_training_data_are_checked_and_read_with_it(version: str, data: Path) -> None:
    typed = [
        "--from_pretrained",
        model_of(version),
        "--train_data",
        str(data),
        "--save_path",
        "x",
        "--version",
        version,
    ]
    chosen = settings_files.settings_from(settings_files.make_parser().parse_args(typed))
    processor = load_processor(model_of(version), version=chosen.version)
    report = validate(data, processor)
    (sample,) = VLMDataset([Record("1", (EXAMPLE,), (("What?", "a dog"),), "x:1")], processor)
    assert report.ok and report.lengths == [sample.length]


@pytest.mark.parametrize(
    "command", ["cli_demo_sat", "openai_api", "web_demo", "validate_dataset", "finetune", "caption", "evaluate"]
)
def test_help_names_every_style(command: str) -> None:
    given = [sys.executable, str(ROOT / "scripts" / f"{command}.py"), "--help"]
    said = " ".join(subprocess.run(given, capture_output=True, text=True, check=True).stdout.split())
    assert f"{', '.join(STYLES)} (default" in said


@pytest.mark.parametrize("main", [cli.main, server.main])
def test_an_unknown_one_is_refused(main: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version", "llava-v1", "--max_new_tokens", "2"]) == 2
    assert "Unknown prompt version 'llava-v1'. Did you mean llava_v1" in capsys.readouterr().err
    with pytest.raises(UnknownNameError):
        load_processor(MODEL, version="llava-v1")


def test_a_models_usual_style_is_one_of_its_family() -> None:
    for spec in (spec for spec in registry.specs() if spec.task == "dialogue"):
        data = read_json(registry.config_path(spec.name))
        assert spec.default_version in family_of(data["model_class"]).styles, spec.name
