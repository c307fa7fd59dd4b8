"""The validator: every kind of problem by line, lengths, and which tokens are trained."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from data_helpers import GOLDEN, image_file, processor, write_json, write_jsonl

from sat_models.errors import CheckpointError, UnknownNameError
from sat_models.training.data_report import histogram, report_text
from sat_models.training.validate import marked_text, validate
from sat_models.zoo import load_processor

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "validate_dataset.py"


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """One fault of each kind, each on a line of its own."""
    image_file(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    good = {"prompt": "What?", "text": "A dog.", "image": "1.png"}
    lines = [
        good,
        {**good, "image": "2.png"},
        {**good, "text": ""},
        {**good, "text": "word " * 300},
        {**good, "prompt": "<image> <image> What?"},
        good,
        "{",
        {"text": "x"},
        {**good, "prompt": "long " * 300},
    ]
    return write_jsonl(tmp_path / "x.jsonl", lines)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The script in this process: code, out, err."""

    def call(*flags: object) -> SimpleNamespace:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, flags)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        out, err = capsys.readouterr()
        return SimpleNamespace(code=stopped.value.code, out=out, err=err)

    return call


def test_every_kind_of_problem_has_its_line(bad: Path) -> None:
    report = validate(bad, processor(), version="base")
    found = {(problem.kind, int(problem.source.rpartition(":")[2])) for problem in report.problems}
    assert found == {
        ("image", 2), ("empty", 3), ("too long", 4), ("slots", 5), ("duplicate", 6), ("json", 7), ("fields", 8),
        ("too long", 9),
    }  # fmt: skip
    messages = {problem.source.rpartition(":")[2]: problem.message for problem in report.problems}
    assert "of the 253 that max_length 256 leaves; its last turns or the end" in messages["4"]
    assert "the question alone takes" in messages["9"] and "cannot be trained on" in messages["9"]
    assert messages["6"] == f"is the same as {bad}:1"
    assert report.records == 5 and not report.ok


def test_without_a_model_no_tokens_are_counted(bad: Path) -> None:
    report = validate(bad, ignore=["json", "duplicate"], decode_images=False)
    assert {problem.kind for problem in report.problems} == {"empty", "slots", "fields"}
    assert report.lengths == [] and report.sample is None and "--from_pretrained" in report_text(report)
    with pytest.raises(UnknownNameError, match="kind of problem 'long'"):
        validate(bad, ignore=["long"])


def test_what_fits_exactly_is_no_problem(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "Why?", "text": "word " * 20}])
    (length,) = validate(path, processor(), version="base").lengths
    (sample,) = processor().training_samples(None, [("Why?", "word " * 20)], version="base", max_length=length + 3)
    assert sample.length == length
    assert validate(path, processor(), version="base", max_length=length + 3).ok
    assert not validate(path, processor(), version="base", max_length=length + 2).ok


def test_trained_tokens_are_marked() -> None:
    turns = [("What?", "A dog."), ("Where?", "左")]
    image = GOLDEN / "cogvlm-mini" / "image.png"
    (chat,) = processor().training_samples([image, image], turns, version="chat")
    text = marked_text(chat, processor().tokenizer)
    assert text == "<s><picture><picture>  [INST] What? [/INST] «A dog.</s>» [INST] Where? [/INST] « 左</s>»"
    (base, _) = processor().training_samples(None, turns, version="base")
    assert marked_text(base, processor().tokenizer) == "<s> What?« A dog.</s>»"


def test_histogram_counts_everything() -> None:
    assert histogram([]) == [] and histogram([5, 5]) == [(5, 5, 2)]
    rows = histogram([1, 2, 3, 50, 99, 100])
    assert sum(count for *_, count in rows) == 6 and rows[0] == (1, 10, 3) and rows[-1] == (91, 100, 2)


def test_captions_and_captchas(tmp_path: Path) -> None:
    image_file(tmp_path / "0427_1.png")
    report = validate(tmp_path, processor(), version="base")
    assert report.ok and report.format == "captcha" and "CAPTCHA:« 0427</s>»" in report.sample[1]


def test_script_prints_json(bad: Path, run: Callable[..., Any]) -> None:
    done = run(bad, "--json", "--from_pretrained", GOLDEN / "cogvlm-mini", "--version", "chat", "--max-length", 200)
    assert done.code == 1
    report = json.loads(done.out)
    assert not report["ok"] and report["max_length"] == 200 and report["samples"] == 5
    assert report["problems"][0].keys() == {"source", "kind", "message"}
    assert report["sample"]["source"] == f"{bad}:1" and report["lengths"]["shortest"] > 18


def test_script_codes(bad: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    done = run(bad, "--most", 1)
    assert done.code == 1 and f"{bad}:" in done.out and "more" in done.out
    fine = write_jsonl(tmp_path / "fine.jsonl", [{"prompt": "a", "text": "b"}])
    done = run(fine, "--from_pretrained", GOLDEN / "cogvlm-mini")
    assert done.code == 0 and "problems: none" in done.out and "#" in done.out and "«" in done.out
    for flags in ([tmp_path / "none"], [fine, "--ignore", "nothing"], [fine, "--format", "x"], ["--json"], []):
        assert run(*flags).code == 2


def test_script_refuses_what_it_would_not_read(run: Callable[..., Any], tmp_path: Path) -> None:
    fine = write_jsonl(tmp_path / "fine.jsonl", [{"prompt": "a", "text": "b"}])
    done = run(fine, "--version", "chat", "--max_length", 9, "--local_tokenizer", "x")
    assert done.code == 2 and "does not read --local_tokenizer, --version, --max_length; leave them" in done.err
    done = run(fine, "--json", "--most", 3)
    assert done.code == 2 and "--json does not read --most; leave it out" in done.err


def test_a_processor_needs_no_weights(tmp_path: Path) -> None:
    source = GOLDEN / "cogagent-mini"
    for name in ("model_config.json", "tokenizer.model"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    found = load_processor(tmp_path, version="chat_old")
    config = json.loads((source / "model_config.json").read_text())
    assert (found.images.length, found.cross_image_size) == (config["image_length"], config["cross_image_pix"])
    assert found.version == "chat_old" and found.tokenizer
    named = load_processor("cogvlm-base-490", local_tokenizer=tmp_path)
    assert (named.images.side, named.images.length, named.version) == (490, 1225, "base")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_processor(tmp_path / "none" / "at" / "all")
    write_json(tmp_path / "empty" / "x.json", {})
    with pytest.raises(CheckpointError):
        load_processor(tmp_path / "empty")
