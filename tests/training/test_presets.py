"""Every file of configs/finetune is a settings file that fits what it says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from sat_models.registry import find_spec
from sat_models.training.engine import deepspeed_settings
from sat_models.training.settings_files import make_parser, settings_from

FILES = sorted((Path(__file__).resolve().parents[2] / "configs" / "finetune").glob("*.yaml"))
NEEDED = ["--train_data", "data", "--save_path", "out"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_preset_makes_settings_and_deepspeed_settings(file: Path) -> None:
    model = file.stem if find_spec(file.stem) else "cogvlm-chat"
    settings = settings_from(make_parser().parse_args(["--from_pretrained", model, "--config", str(file), *NEEDED]))
    precision = "fp32" if settings.optimizer == "muon" else "bf16"
    zero = deepspeed_settings(settings, precision)["zero_optimization"]
    assert zero["stage"] in range(4)
    assert ("offload_optimizer" in zero) == (settings.deepspeed is not None and "offload" in settings.deepspeed)


def test_there_are_presets() -> None:
    assert {"captcha", "cogvlm-tiny", "lora-all", "expert-in-full", "everything"} <= {file.stem for file in FILES}
