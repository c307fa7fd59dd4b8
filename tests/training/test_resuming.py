"""Whose run a folder holds: what may change on the way is said, the rest refused with the true reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from data_helpers import image_file, record, write_jsonl
from finetune_runs import ENVIRONMENT, ROOT, command, finetune, losses

from sat_models.errors import CheckpointError
from sat_models.training.formats import read_records
from sat_models.training.reporting import METRICS_FILE, Reporter, read_metrics
from sat_models.training.resuming import (
    REASONS,
    changes,
    check_identity,
    check_no_model,
    data_digest,
    images_digest,
    run_identity,
    weights_digest,
)
from sat_models.training.settings import FinetuneSettings
from sat_models.training.store import CheckpointStore

GIVEN = {"from_pretrained": "cogvlm-tiny", "save_path": "s", "train_data": ("d",)}


def identity(**settings: Any) -> dict[str, Any]:
    made = FinetuneSettings(**{**GIVEN, **settings})
    records = [record(1, None)]
    facts = {"from_pretrained": "b", "precision": "fp32", "zero": 1, "version": "chat"}
    return run_identity(made, records, {**facts, "packed to": 256 if made.pack else None})


def test_everything_that_must_stay_has_a_reason() -> None:
    assert identity().keys() == REASONS.keys()
    check_identity(Path("x/4"), json.loads(json.dumps(identity())), identity())


def test_a_run_of_before_packing_was_not_packed() -> None:
    saved = {name: value for name, value in identity().items() if name != "packed to"}
    check_identity(Path("x/4"), saved, identity())
    with pytest.raises(CheckpointError, match="packed to = None"):
        check_identity(Path("x/4"), saved, identity(pack=True))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora_rank": 4}, "lora_rank = 10, but this one has 4: other weights train"),
        ({"lora_alpha": 2.0}, "lora_alpha = 1.0, but this one has 2.0: what was trained would count for more"),
        ({"optimizer": "muon", "zero": 0}, "optimizer = adamw, but this one has muon: another optimiser keeps"),
        ({"mp": 2}, "mp = 1, but this one has 2: the optimiser state is cut over the processes"),
        ({"pack": True}, "packed to = None, but this one has 256: the rows would hold other samples"),
        ({"seed": 1}, "seed = 1234, but this one has 1: the order of the data"),
    ],
)
def test_what_may_not_change_is_refused_with_the_true_reason(settings: dict[str, Any], said: str) -> None:
    saved = json.loads(json.dumps(identity()))
    with pytest.raises(CheckpointError, match=f"x/4 was written by a run with {said}.*start anew.*x/merged"):
        check_identity(Path("x/4"), saved, identity(**settings))


@pytest.mark.parametrize("kind", ["sat", "release", "huggingface", "step", "adapter"])
def test_the_folder_of_a_model_is_no_place_for_a_run(kind: str, tmp_path: Path) -> None:
    """Step 1 of a run would take the place of the model's own step 1."""
    weights = {"sat": "1/mp_rank_00_model_states.pt", "release": "release/mp_rank_00_model_states.pt"}
    weights |= {"huggingface": "model-00001-of-00002.safetensors", "step": "mp_rank_00_model_states.pt"}
    file = tmp_path / "model" / weights.get(kind, "adapter.safetensors")
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for folder in (tmp_path / "model", tmp_path / "link"):
        with pytest.raises(CheckpointError, match=r"weights that no fine-tuning run wrote \(.*another --save_path"):
            check_no_model(CheckpointStore(folder))
    (tmp_path / "run" / "2").mkdir(parents=True)
    (tmp_path / "run" / "2" / "manifest.json").touch()
    (tmp_path / "run" / "4").mkdir()  # its manifest was lost: the step before is gone on with
    check_no_model(CheckpointStore(tmp_path / "run"))
    check_no_model(CheckpointStore(tmp_path / "new"))


def test_a_run_into_its_own_base_leaves_the_weights_alone(tmp_path: Path) -> None:
    base = Path(shutil.copytree(ROOT / "sat_models" / "assets" / "cogvlm-tiny", tmp_path / "base"))
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    done = finetune(base, from_pretrained=base, train_iters=1, save_interval=1)
    assert done.returncode == 2 and "holds weights that no fine-tuning run wrote (1)" in done.stderr
    assert {path: path.read_bytes() for path in before} == before


def test_a_default_that_is_typed_is_no_change() -> None:
    saved = identity()
    check_identity(Path("x/4"), saved, identity(lora_alpha=1.0))
    check_identity(Path("x/4"), {**saved, "lora_alpha": None}, identity(lora_alpha=1.0))


def test_what_may_change_is_said() -> None:
    saved = FinetuneSettings(**GIVEN).to_dict()
    now = FinetuneSettings(**GIVEN, batch_size=1, accumulate=4, learning_rate=1e-4, workers=0)
    assert changes(saved, now) == "batch_size 4 -> 1, accumulate 1 -> 4, learning_rate 1e-05 -> 0.0001"
    assert changes(json.loads(json.dumps(saved)), FinetuneSettings(**GIVEN)) == ""


def test_other_data_of_the_same_number_are_other_data(tmp_path: Path) -> None:
    image_file(tmp_path / "1.png")
    entry = {"prompt": "What?", "text": "A dog.", "image": "1.png"}
    path = write_jsonl(tmp_path / "x.jsonl", [entry])
    before = data_digest(read_records(path))
    assert data_digest(read_records(path)) == before
    seen = {before}
    others = ({"text": "A cat."}, {"image": None}, {"history": [["Hm?", "Yes."]]})
    for other in others:
        seen.add(data_digest(read_records(write_jsonl(path, [{**entry, **other}]))))
    image_file(tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes() + b"\0")
    seen.add(data_digest(read_records(write_jsonl(path, [entry]))))
    assert len(seen) == 5


def test_an_image_replaced_by_another_of_its_size_is_other_data(tmp_path: Path) -> None:
    for name in ("a/1.bmp", "b/1.bmp"):
        image_file(tmp_path / name)
    entries = [{"prompt": "What?", "text": "A dog.", "image": name} for name in ("a/1.bmp", "b/1.bmp", "a/1.bmp")]
    read = read_records(write_jsonl(tmp_path / "x.jsonl", entries))
    before, data = images_digest(read), data_digest(read)
    content, times = bytearray((tmp_path / "b/1.bmp").read_bytes()), os.stat(tmp_path / "b/1.bmp")
    os.utime(tmp_path / "b/1.bmp", ns=(1, 1))
    assert images_digest(read) == before, "a touched file is the same"
    content[-1] ^= 1
    (tmp_path / "b/1.bmp").write_bytes(content)
    os.utime(tmp_path / "b/1.bmp", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert data_digest(read) == data and images_digest(read) != before
    after = images_digest(read)
    entries[2]["image"] = "b/1.bmp"
    assert images_digest(read_records(write_jsonl(tmp_path / "x.jsonl", entries))) != after, "which, not only what"
    saved = {**identity(), "training images": before}
    with pytest.raises(CheckpointError, match=r"training images = \w{12}….*same names and sizes hold something else"):
        check_identity(Path("x/4"), saved, identity())


def test_other_weights_at_the_same_path_are_other_weights(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "tests" / "golden" / "cogvlm-mini", tmp_path / "m"))
    before = weights_digest(str(folder))
    (file,) = folder.glob("*/mp_rank_00_model_states.pt")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert weights_digest(str(folder)) != before


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("run")
    done = finetune(folder, train_iters=2, lora_alpha=1, valid_share=0)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_a_smaller_batch_goes_on_and_says_what_changed(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    done = finetune(folder, train_iters=4, batch_size=1, accumulate=2, learning_rate=1e-4, valid_share=0)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "of step 2: batch_size 2 -> 1, accumulate 1 -> 2, learning_rate" in done.stderr
    assert list(losses(folder)) == [1, 2, 3, 4]
    manifest = json.loads((folder / "4" / "manifest.json").read_text())
    assert manifest["info"]["progress"]["passes"] == 2 * 2 + 2 * 2, "two passes of two samples were four of one"


def test_other_data_are_refused_even_where_nothing_is_left_to_do(run: Path, tmp_path: Path) -> None:
    entries = [
        json.loads(line) for line in (ROOT / "examples" / "example_inputs.jsonl").read_text().split("\n") if line
    ]
    entries = [{**entry, "image": str(ROOT / entry["image"])} for entry in entries]
    other = write_jsonl(tmp_path / "o.jsonl", [{**entries[0], "text": "Something else."}, *entries[1:]])
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*") if path.name not in (".lock", ".probe"))
    done = finetune(run, train_iters=2, train_data=other, valid_share=0)
    assert (
        done.returncode == 2 and "training data = " in done.stderr and "it would go on with other data" in done.stderr
    )
    after = sorted(path.stat().st_mtime_ns for path in run.rglob("*") if path.name not in (".lock", ".probe"))
    assert set(before) <= {*after, run.stat().st_mtime_ns}, "a refused run changes nothing"


def test_files_are_readable_by_others(run: Path) -> None:
    assert not [path for path in run.rglob("*") if path.is_file() and not path.stat().st_mode & 0o044]


def test_two_runs_at_once_into_one_folder(tmp_path: Path) -> None:
    first = subprocess.Popen(
        command(tmp_path / "run", train_iters=400), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / METRICS_FILE).exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        second = finetune(tmp_path / "run", train_iters=400)
        assert second.returncode == 2, second.stderr[-2000:]
        assert f"run is in use by another fine-tuning run (process {first.pid} on" in second.stderr
    finally:
        first.kill()
        first.communicate()
    after = finetune(tmp_path / "run", train_iters=1)
    assert after.returncode == 0, after.stderr[-2000:]


@pytest.mark.parametrize("when", ["start", "report"])
def test_a_full_disk_at_a_line_of_metrics_is_one_clear_error(when: str, tmp_path: Path) -> None:
    metrics = tmp_path / METRICS_FILE
    if when == "report":
        reporter = Reporter(tmp_path, step=0, tensorboard=False)
        metrics.unlink()
    metrics.symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"cannot write .*metrics\.jsonl: No space left on device\. Free space"):
        if when == "start":
            Reporter(tmp_path, step=0, tensorboard=False)
            Reporter(tmp_path, step=0, tensorboard=False).report(1, {"loss": 1.0})
        else:
            reporter.report(1, {"loss": 1.0})


def test_a_cut_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"step": 1, "note": "a\u2028b"}\n{"step": 2, "lo')
    assert [line["step"] for line in read_metrics(tmp_path / METRICS_FILE)] == [1]
