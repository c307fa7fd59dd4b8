"""Weights that are there are never destroyed: what a command may write over, and what it leaves when it fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sat_models.checkpoint import convert as converting
from sat_models.checkpoint.convert import convert, save_hf
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.output import MARKER_FILE, check_output, replaced_folder
from sat_models.commands import convert as convert_command
from sat_models.commands import merge as merge_command
from sat_models.errors import CheckpointError, ConfigError
from sat_models.models.common.quantisation import Quantisation


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("size", [-1, 0])
def test_no_size_below_one(golden, folder, tmp_path, size):
    before = content(folder)
    source = ["--from", str(golden / "cogvlm-mini"), "--to", "sat"]
    for main, given in (
        (convert_command.main, source),
        (merge_command.main, ["--from_pretrained", str(golden / "cogvlm-mini")]),
    ):
        for target in (folder, tmp_path / "new"):
            with pytest.raises(ConfigError, match=f"--mp is {size}; it must be at least 1"):
                main([*given, "--output", str(target), "--mp", str(size)])
    with pytest.raises(ConfigError, match=f"size is {size}; it must be at least 1"):
        convert(golden / "cogvlm-mini", "sat", tmp_path / "new", size=size)
    assert content(folder) == before and not (tmp_path / "new").exists()


@pytest.mark.parametrize("alpha", ["nan", "inf", "0", "-2"])
def test_alpha_is_a_number_above_zero(folder, tmp_path, alpha):
    with pytest.raises(ConfigError, match=r"--alpha is .*; it must be above 0"):
        merge_command.main(["--from_pretrained", str(folder), "--output", str(tmp_path / "new"), "--alpha", alpha])


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("form", ["sat", "hf"])
def test_what_no_such_command_wrote_stays(golden, folder, form, overwrite):
    """Another model's step, the same model's, in a lower precision or quantised; and a folder of something else."""
    before = content(folder)
    for name in ("cogagent-mini", "cogvlm-mini"):
        with pytest.raises(CheckpointError, match="exists already"):
            convert(golden / name, form, folder, overwrite=overwrite)
    if form == "sat":
        with pytest.raises(CheckpointError, match="exists already"):
            convert(golden / "cogvlm-mini", form, folder, quantisation=Quantisation(bits=8), overwrite=overwrite)
    assert content(folder) == before
    with pytest.raises(CheckpointError, match="is a file; name a folder"):
        convert(golden / "cogvlm-mini", form, folder / "latest", overwrite=overwrite)
    assert content(folder) == before


def test_overwriting_replaces_what_such_a_command_wrote_as_a_whole(golden, tmp_path):
    target, other = tmp_path / "out", tmp_path / "other"
    shutil.copytree(golden / "cogagent-mini", other, ignore=shutil.ignore_patterns("reference.*", "*.png"))
    (other / "tokenizer.model").unlink()
    convert(golden / "cogvlm-mini", "sat", target, size=2)
    assert (target / "tokenizer.model").is_file()
    with pytest.raises(CheckpointError, match=r"exists already; name a new folder; or add --overwrite"):
        convert(other, "sat", target)
    convert(other, "sat", target, step="7", overwrite=True)
    assert set(content(target)) == {"model_config.json", "latest", "7/mp_rank_00_model_states.pt", MARKER_FILE}
    assert find_checkpoint(target).config["model_class"] == "CogAgentModel"
    convert(golden / "cogvlm-mini", "hf", target, overwrite=True)  # the other form, too
    assert "model_config.json" not in content(target) and find_checkpoint(target).config["model_class"] == "CogVLMModel"
    save_hf(golden / "cogvlm-mini", target, dtype=torch.bfloat16, overwrite=True)
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("main", [convert_command.main, merge_command.main], ids=["convert", "merge"])
def test_every_familys_tokenizer_goes_with_its_weights(golden, tmp_path, main):
    """VisualGLM's has a name of its own."""
    weights = tmp_path / "weights"
    shutil.copytree(golden / "visualglm-mini", weights, ignore=shutil.ignore_patterns("reference.*", "*.png"))
    (weights / "ice_text.model").write_bytes(b"its pieces")
    source = ["--from", "--to=sat"] if main is convert_command.main else ["--from_pretrained"]
    main([source[0], str(weights), *source[1:], "--output", str(tmp_path / "out")])
    assert (tmp_path / "out" / "ice_text.model").read_bytes() == b"its pieces"


def test_overwriting_loses_nothing_that_was_added(golden, tmp_path):
    target = tmp_path / "out"
    convert(golden / "cogvlm-mini", "sat", target)
    (target / "notes.txt").write_text("mine")
    before = content(target)
    with pytest.raises(CheckpointError, match=r"also holds notes\.txt, which --overwrite would lose"):
        convert(golden / "cogvlm-mini", "sat", target, overwrite=True)
    assert content(target) == before


def test_what_is_read_is_not_written(golden, tmp_path):
    target = tmp_path / "out"
    convert(golden / "cogvlm-mini", "sat", target)
    for source in (target, target / "1", target / "1" / "mp_rank_00_model_states.pt"):
        with pytest.raises(ConfigError, match="is what is read; name another folder"):
            convert(source, "sat", target, step="2", overwrite=True)


def test_a_write_that_fails_leaves_the_former_whole(golden, tmp_path, monkeypatch):
    target = tmp_path / "out"
    convert(golden / "cogvlm-mini", "sat", target)
    before = content(target)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converting._SATPlan, "_part", fail)
    for place in (target, tmp_path / "new"):
        with pytest.raises(CheckpointError, match="No space left"):
            convert(golden / "cogvlm-mini", "sat", place, overwrite=True)
    assert content(target) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_filled_where_it_stands(golden, tmp_path):
    """It may be a mount, or all that one may write in."""
    target = tmp_path / "locked" / "out"
    target.mkdir(parents=True)
    (target / ".writing" / "1").mkdir(parents=True)
    (target / ".writing" / "1" / "half").write_text("left by a process that was killed")
    inode = target.stat().st_ino
    convert(golden / "cogvlm-mini", "sat", target)
    assert target.stat().st_ino == inode and not (target / ".writing").exists()
    assert json.loads((target / MARKER_FILE).read_text())["files"] == sorted(
        content(target), key=lambda n: (n == MARKER_FILE, n)
    )


def test_a_kill_between_two_names_loses_nothing(golden, tmp_path):
    target = tmp_path / "out"
    convert(golden / "cogvlm-mini", "sat", target)
    before = content(target)
    target.rename(replaced_folder(target))
    with pytest.raises(CheckpointError, match="exists already"):
        check_output(target, overwrite=False, read=[])
    assert content(target) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "place"), [("merge", "nothing"), ("quantise", "nothing"), ("quantise", "empty"), ("merge", "former")]
)
def test_killed_at_any_moment_of_merging_and_quantising(tmp_path, kind, place):
    """What lies there is whole, the former one, or no checkpoint; and the same command then makes it whole.

    Between two names, when the former has given way already, nothing lies there; it waits beside, and is taken back."""
    worker = Path(__file__).with_name("write_worker.py")
    environment = {**os.environ, "PYTHONPATH": str(worker.parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(worker), str(tmp_path), kind, place]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    reports = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(reports) > 8 and {report["died_in"] for report in reports} >= {"save", "fsync", "mkdir", "rename", None}
    for report in reports:
        assert report["found"] in ("whole", "former", "no checkpoint"), report
        assert report["beside"] in ([], ["out"]) and (report["again"], report["left"]) == ("whole", ["out"]), report
    assert reports[-1]["found"] == "whole" and reports[0]["found"] != "whole"
    if place == "former":
        assert sum(report["found"] == "no checkpoint" for report in reports) <= 1, reports
