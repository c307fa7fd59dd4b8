"""Settings of a run: where they come from, what beats what, what is refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from sat_models.errors import ConfigError, UnknownNameError
from sat_models.training.loop_parts import learning_rate
from sat_models.training.settings import FinetuneSettings
from sat_models.training.settings_files import make_parser, settings_from

NEEDED = ["--from_pretrained", "cogvlm-chat", "--train_data", "data", "--save_path", "out"]


def parse(*flags: str, needed: list[str] = NEEDED) -> FinetuneSettings:
    return settings_from(make_parser().parse_args([*needed, *flags]))


def made(**settings: Any) -> FinetuneSettings:
    return FinetuneSettings(from_pretrained="m", train_data=("d",), save_path="s", **settings)


def write(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_flags_beat_files_beat_presets_beat_defaults(tmp_path: Path) -> None:
    assert parse().learning_rate == 1e-5
    tiny = ["--from_pretrained", "cogvlm-tiny", *NEEDED[2:]]
    assert parse(needed=tiny).learning_rate == 1e-3, "configs/finetune/cogvlm-tiny.yaml"
    first, second = write(tmp_path, "learning_rate: 1e-4\nclip: 2"), write(tmp_path, "learning_rate: 2.0e-4", "b.yaml")
    assert parse("--config", first, needed=tiny).learning_rate == 1e-4, "YAML takes 1e-4 for text; we do not"
    both = parse("--config", first, second, needed=tiny)
    assert (both.learning_rate, both.clip) == (2e-4, 2.0)
    assert parse("--config", second, "--learning-rate", "0.5", needed=tiny).learning_rate == 0.5


def test_a_file_can_hold_the_whole_run(tmp_path: Path) -> None:
    text = "from_pretrained: cogvlm-tiny\ntrain_data: [a, b]\nsave_path: out\nrate_scales: {vit: 0.1}\ndora: true"
    settings = parse("--config", write(tmp_path, text), needed=[])
    assert settings.train_data == ("a", "b") and settings.rate_scales == {"vit": 0.1} and settings.dora
    assert settings.learning_rate == 1e-3, "the preset of the model that the file names"


def test_flags_take_several_values_and_negations() -> None:
    settings = parse("--rate_scales", "vit=0.5", "projector=2", "--layer_range", "0", "1", "--no-merge")
    assert settings.rate_scales == {"vit": 0.5, "projector": 2.0}
    assert settings.layer_range == (0, 1) and settings.merge is False


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_rank": -1, "lora_dropout": 0.1}, "rank -1"),
        ({"lora_rank": -1, "quant": 4}, "give --lora_rank"),
        ({"patience": 2, "eval_interval": 0}, "--eval_interval 0"),
        ({"best_by": "exact_match", "eval_samples": 0}, "--eval_samples"),
        ({"batch_size": 0}, "at least 1"),
        ({"zero": 4}, "0, 1, 2 and 3"),
        ({"warmup": 1.0}, "below 1"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"learning_rate": 1e-5, "min_learning_rate": 1e-4}, "not below"),
        ({"adam_betas": (0.9,)}, "two numbers"),
    ],
)
def test_what_contradicts_itself_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(**settings)


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("learning_rat: 1", UnknownNameError, "learning_rate"),
        ("- a", ConfigError, "list"),
        ("batch_size: many", ConfigError, "must be int"),
        ("batch_size: 1.5", ConfigError, "must be int"),
        ("dora: perhaps", ConfigError, "must be bool"),
        ("schedule: step", ConfigError, "cosine"),
        ("rate_scales: {vit: much}", ConfigError, "GROUP=FACTOR"),
        ("a: [", ConfigError, "cannot be read"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        parse("--config", write(tmp_path, text))


def test_a_missing_file_and_missing_needs() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        parse("--config", "nowhere.yaml")
    for missing in ("--from_pretrained", "--train_data", "--save_path"):
        at = NEEDED.index(missing)
        with pytest.raises(ConfigError, match=f"{missing} is missing"):
            parse(needed=NEEDED[:at] + NEEDED[at + 2 :])


def test_the_rate_rises_then_falls_to_its_least() -> None:
    settings = made(train_iters=100, warmup=0.1, learning_rate=1.0, min_learning_rate=0.2)
    rates = [learning_rate(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == pytest.approx(1.0)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.6), "half of a cosine's way down"
    assert 0.2 < rates[99] < 0.201
    linear = made(train_iters=100, warmup=0.0, learning_rate=1.0, schedule="linear")
    assert [learning_rate(linear, step) for step in (0, 25, 75)] == pytest.approx([1.0, 0.75, 0.25])
    constant = made(train_iters=100, warmup=0.0, learning_rate=1.0, schedule="constant")
    assert {learning_rate(constant, step) for step in range(100)} == {1.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", math.inf), ("weight_decay", math.nan), ("clip", math.inf), ("min_learning_rate", math.nan),
        ("lora_alpha", math.nan), ("lora_alpha", 0.0), ("lora_dropout", 1.0), ("lora_dropout", -0.1), ("lora_rank", 0),
        ("lora_rank", -5), ("max_length", 0), ("max_length", -3), ("valid_share", 1.0), ("valid_share", math.nan),
        ("muon_rate", -1.0), ("seed", -1), ("seed", 2**70), ("adam_betas", (math.nan, 0.9)),
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"--{name} is "):
        made(**{name: value})
