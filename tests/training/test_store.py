"""What is left of a run's checkpoints after kills, damage, full disks and pruning."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from sat_models import runtime
from sat_models.checkpoint import staging as staging_module
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.io import read_weights, write_model_config, write_rank_weights
from sat_models.errors import CheckpointError
from sat_models.models.build import build_model, make_config
from sat_models.training import store as store_module
from sat_models.training.store import CheckpointStore

ROOT = Path(__file__).resolve().parents[2]


def writer(text: str, count: int = 3) -> Callable[[Path], None]:
    """Writes some files of known content, one in a subfolder."""

    def write(staging: Path) -> None:
        for number in range(count):
            (staging / f"{number}.bin").write_text(text * 100)
        (staging / "state").mkdir()
        (staging / "state" / "rank_0.bin").write_text(text * 999)

    return write


def hidden(folder: Path) -> list[str]:
    """What a save must not leave behind."""
    return [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run")


@pytest.fixture
def saved(store: CheckpointStore) -> CheckpointStore:
    """Steps 10 and 20 are saved."""
    for step in (10, 20):
        store.save(step, writer(str(step)), info={"loss": step / 7, "samples": [1, 2]})
    return store


def test_a_step_is_saved_whole_and_found_again(saved):
    path, manifest = CheckpointStore(saved.folder).newest_good()
    assert path == saved.folder / "20" and (path / "2.bin").read_text() == "20" * 100
    assert manifest["step"] == 20 and manifest["info"] == {"loss": 20 / 7, "samples": [1, 2]}
    assert manifest["files"].keys() == {"0.bin", "1.bin", "2.bin", "state/rank_0.bin"}
    assert (saved.folder / "latest").read_text() == "20"
    assert saved.steps() == [10, 20] and not hidden(saved.folder) and not (saved.folder / "best").exists()
    for step in saved.steps():
        saved.verify(step)


def test_an_empty_place_has_nothing_to_resume(store):
    assert store.steps() == [] and store.newest_good() is None
    store.check_writable()
    assert store.newest_good() is None and os.listdir(store.folder) == []


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped": (_flip, "2.bin", r"20/2\.bin is damaged: its SHA-256"),
    "cut off": (lambda path: os.truncate(path, 100), "state/rank_0.bin", r"rank_0\.bin has 100 bytes; 1,998 were"),
    "gone": (Path.unlink, "0.bin", r"20/0\.bin is missing"),
    "no manifest": (Path.unlink, "manifest.json", r"20/manifest\.json is missing"),
    "half a manifest": (lambda path: os.truncate(path, 50), "manifest.json", r"manifest\.json is damaged"),
    "no JSON object": (lambda path: path.write_text('{"files": [1]}'), "manifest.json", r"manifest\.json is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_step_is_passed_over_with_the_reason(saved, caplog, kind):
    damage, name, message = DAMAGE[kind]
    damage(saved.folder / "20" / name)
    with pytest.raises(CheckpointError, match=message):
        saved.verify(20)
    with caplog.at_level(logging.WARNING):
        path, manifest = saved.newest_good()
    assert path.name == "10" and manifest["step"] == 10
    assert len(caplog.messages) == 1 and caplog.messages[0].startswith("checkpoint 20 in")
    saved.verify(10)


def test_a_renamed_step_is_not_taken_for_another(saved):
    (saved.folder / "20").rename(saved.folder / "30")
    assert saved.newest_good()[0].name == "10"


def test_all_damaged_is_nothing(saved, caplog):
    for step in (10, 20):
        _flip(saved.folder / str(step) / "0.bin")
    assert saved.newest_good() is None and len(caplog.messages) == 2


def test_a_damaged_step_does_not_take_the_place_of_a_good_one(saved):
    _flip(saved.folder / "20" / "0.bin")
    assert saved.newest_good()[0].name == "10"
    saved.save(15, writer("15"))
    saved.save(25, writer("25"))
    assert saved.steps() == [15, 20, 25]  # the last two good ones, and the damaged one that is newer than the first
    saved.save(30, writer("30"))
    assert saved.steps() == [25, 30]


def test_a_step_can_be_saved_again(saved):
    _flip(saved.folder / "20" / "0.bin")
    assert saved.newest_good()[0].name == "10"
    saved.save(20, writer("again"))
    path, _ = saved.newest_good()
    assert path.name == "20" and (path / "0.bin").read_text() == "again" * 100 and not hidden(saved.folder)


def test_the_best_and_the_last_stay(store):
    for step, score in ((1, 0.9), (2, 0.3), (3, 0.5), (4, None), (5, float("nan")), (6, 0.3)):
        store.save(step, writer("x"), score=score)
    assert (store.folder / "best").read_text() == "2" and store.steps() == [2, 5, 6]
    assert store.newest_good()[1]["score"] == 0.3


def test_higher_can_be_better_and_keep_last_one(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=1)
    for step, score in ((1, 0.1), (2, 0.8), (3, 0.5)):
        store.save(step, writer("x"), score=score, higher_is_better=True)
    assert (tmp_path / "best").read_text() == "2" and store.steps() == [2, 3]
    with pytest.raises(CheckpointError, match="at least 1, got 0"):
        CheckpointStore(tmp_path, keep_last=0)


def test_only_its_own_steps_are_removed(store):
    foreign = store.folder / "3"
    foreign.mkdir(parents=True)
    (foreign / "mp_rank_00_model_states.pt").write_text("somebody's weights")
    for step in (4, 5, 6, 7):
        store.save(step, writer("x"))
    assert store.steps() == [3, 6, 7] and foreign.is_dir()


def _fails_at(name: str) -> Callable[[Path], None]:
    def write(staging: Path) -> None:
        writer("new")(staging)
        if name == "disk full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise TypeError("cannot pickle this")

    return write


@pytest.mark.parametrize(
    ("name", "message"),
    [("disk full", "was not saved; cannot write in .*No space left.*Free space"), ("bug", "TypeError: cannot pickle")],
)
def test_a_writer_that_fails_leaves_all_as_it_was(saved, name, message):
    with pytest.raises(CheckpointError, match=message):
        saved.save(30, _fails_at(name))
    assert saved.steps() == [10, 20] and not hidden(saved.folder)
    assert (saved.folder / "latest").read_text() == "20" and saved.newest_good()[0].name == "20"


@pytest.mark.parametrize("place", ["_fingerprint", "write_text", "publish"])
def test_a_store_that_fails_leaves_all_as_it_was(saved, monkeypatch, place):
    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

    monkeypatch.setattr(store_module, place, fail)
    with pytest.raises(CheckpointError, match="cannot write somewhere: No space left"):
        saved.save(20, writer("new"))
    monkeypatch.undo()
    assert saved.steps() == [10, 20] and not hidden(saved.folder)
    path, _ = saved.newest_good()
    assert (path / "0.bin").read_text() == "20" * 100


def test_a_step_being_replaced_comes_back_if_its_successor_cannot_be_named(saved, monkeypatch):
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".writing"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        saved.save(20, writer("new"))
    assert saved.steps() == [10, 20] and not hidden(saved.folder)
    assert (saved.newest_good()[0] / "0.bin").read_text() == "20" * 100


def test_nothing_is_published_if_latest_cannot_be_written(saved, monkeypatch):
    def fail(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(staging_module, "write_text", fail)
    with pytest.raises(CheckpointError, match=r"cannot write .*latest: No space left"):
        saved.save(30, writer("new"))
    assert (saved.folder / "latest").read_text() == "20"
    for step in (10, 20, 30):  # the new one is whole, too
        saved.verify(step)


def test_a_writer_of_nothing_is_an_error(saved):
    with pytest.raises(CheckpointError, match="nothing was written for step 30"):
        saved.save(30, lambda staging: None)
    assert saved.steps() == [10, 20] and not hidden(saved.folder)


def test_info_that_json_does_not_have_is_an_error(saved):
    with pytest.raises(CheckpointError, match="TypeError"):
        saved.save(30, writer("x"), info={"model": object()})
    assert saved.newest_good()[0].name == "20"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk(small_disk):
    def weights(count: int) -> Callable[[Path], None]:
        return lambda staging: torch.save({"module": {"x": torch.ones(count)}}, staging / "x.pt")

    store = CheckpointStore(small_disk / "run")
    store.check_writable(500_000)
    with pytest.raises(CheckpointError, match=r"run has 1\.0\d MB free, but .* need 2\.50 MB \(the last 2, the best"):
        store.check_writable(2_500_000)
    for step in (1, 2):
        store.save(step, weights(50_000))
    for write, message in (
        (weights(200_000), r"\d bytes are free\. Free space"),
        (writer("x" * 9000), "No space left on"),
    ):
        with pytest.raises(CheckpointError, match=message):
            store.save(3, write)
    assert store.steps() == [1, 2] and not hidden(store.folder) and (store.folder / "latest").read_text() == "2"
    assert store.newest_good()[0].name == "2"
    store.save(4, weights(60_000))
    assert store.newest_good()[0].name == "4" and store.steps() == [2, 4]


def test_room_is_counted_with_what_is_there_already(saved, monkeypatch):
    usage = shutil.disk_usage(saved.folder)
    monkeypatch.setattr(store_module.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    there = sum(path.stat().st_size for path in saved.folder.rglob("*/*") if path.is_file())
    saved.check_writable(there + 1000)
    with pytest.raises(CheckpointError, match=r"free beside .* of checkpoints"):
        saved.check_writable(there + 1001)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    store = CheckpointStore(tmp_path / "file" / "run")
    with pytest.raises(CheckpointError, match=r"checkpoints cannot be saved; cannot write .*file"):
        store.check_writable()
    with pytest.raises(CheckpointError, match=r"the checkpoint was not saved; cannot write .*file"):
        store.save(1, writer("x"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else for a moment")
def test_a_folder_of_somebody_else(tmp_path):
    store = CheckpointStore(tmp_path / "run")
    store.check_writable()
    store.folder.chmod(0o555)
    os.seteuid(65534)
    try:
        with pytest.raises(CheckpointError, match=r"Permission denied.*choose another folder"):
            store.check_writable()
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("step", [3, 2])
def test_killed_at_any_moment_of_a_save(tmp_path, step):
    """Step 3 is new, step 2 is being replaced."""
    command = [sys.executable, str(Path(__file__).with_name("store_worker.py")), str(tmp_path), str(step)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    reports = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(reports) > 15 and {report["died_in"] for report in reports} >= {"save", "fsync", "rename", "mkdir", None}
    for report in reports:
        assert report["newest"] in (2, step) and report["newest"] == report["step"] == report["content"]
        assert report["latest"] in ("2", str(step)) and int(report["latest"]) <= report["newest"]
        assert "9" in report["after"] and not any(name.startswith(".") for name in report["after"])
    assert reports[-1]["newest"] == step and reports[0]["newest"] == 2


def test_the_folder_is_a_sat_folder(tmp_path):
    runtime.init_model_parallel(1)
    config = make_config(find_checkpoint(ROOT / "tests/golden/cogvlm-mini").config)
    model = build_model(config, device="cpu")
    store = CheckpointStore(tmp_path / "run")
    tokenizer = ROOT / "tests/golden/cogvlm-mini/tokenizer.model"
    write_model_config(store.folder, config, tokenizer_file=tokenizer)
    store.save(7, lambda staging: write_rank_weights(model, staging, torch.bfloat16))
    found = find_checkpoint(store.folder)
    assert found.step_folder.name == "7" and make_config(found.config).to_dict() == config.to_dict()
    weights, state = read_weights(found.files[0]), model.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name].bfloat16()) for name in weights)
    assert sorted(os.listdir(store.folder)) == ["7", "latest", "model_config.json", "tokenizer.model"]
