"""Evaluation, `generate` and a server answer alike; where they do not, the first difference is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sat_models.commands import prove_served
from sat_models.commands.prove_served import Asked, main, messages
from sat_models.errors import ConfigError
from sat_models.training.records import Record

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A question and a dialogue about two images, one of them without."""
    image, other = (str(ROOT / "examples" / name) for name in ("6.png", "1.png"))
    turns = [("<image>\nDescribe this image.", "x"), ("How many shapes are there?", "2")]
    rows = [
        {"image": image, "conversations": said(*turns[:1])},
        {"image": other, "conversations": said(*turns)},
    ]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    return tmp_path / "data.json"


def said(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]


def test_all_three_agree_and_a_difference_is_found(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server is started once; the second time it is asked something else."""
    command = ["--data", str(data), "--max_new_tokens", "16", "--device", "cpu"]
    with prove_served.started("cogvlm-tiny", ["--device", "cpu"]) as url:
        assert main([*command, "--url", url]) == 0
        assert "by evaluation, generate and server: all answers are the same" in capsys.readouterr().out
        monkeypatch.setattr(prove_served, "messages", lambda *args: [{"role": "user", "content": "What is it?"}])
        assert main([*command, "--url", url]) == 1
    *differences, verdict = capsys.readouterr().out.strip().splitlines()
    assert "answers differ" in verdict and differences
    assert all("data.json" in line and "token" in line and "server" in line for line in differences)


def test_the_first_difference_in_words() -> None:
    same = [" a", " red", " circle"]
    asked = Asked("d.json:3", {"evaluation": same, "generate": same, "server": [" a", " red"]})
    assert asked.difference() == (
        "d.json:3: token 3 differs behind ' a red': evaluation ' circle', generate ' circle', server ends"
    )
    assert Asked("d.json:3", dict.fromkeys(("evaluation", "generate", "server"), same)).difference() is None


def test_images_stand_where_marks_say_so() -> None:
    image = str(ROOT / "examples" / "1.png")
    record = Record("1", (Path(image), Path(image)), (("", ""),), "d:1")
    told = messages(record, [("one <image> and", "yes")], "<image>two", "Be short.", "<image>")
    assert [turn["role"] for turn in told] == ["system", "user", "assistant", "user"]
    assert [[part["type"] for part in told[number]["content"]] for number in (1, 3)] == [
        ["text", "image_url", "text"],
        ["image_url", "text"],
    ]
    unmarked = messages(record, [("one", "yes")], "two", None, "<image>")
    assert [part["type"] for part in unmarked[0]["content"]] == ["image_url", "image_url", "text"]


def test_one_process_and_good_numbers(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--limit is 0; it must be at least 1"):
        main(["--data", str(data), "--limit", "0"])
    monkeypatch.setattr("sat_models.runtime.world_size", lambda: 2)
    with pytest.raises(ConfigError, match="work of one process"):
        main(["--data", str(data)])
