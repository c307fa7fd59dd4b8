"""The splitter: sizes, seeds, what is kept, and what is never done."""

from __future__ import annotations

import json
import os
import random
import runpy
import sys
from pathlib import Path

import pytest
from data_helpers import image_file, write_json, write_jsonl

from sat_models.errors import ConfigError, InputError
from sat_models.training.formats import read_records
from sat_models.training.split_files import PARTS, part_sizes, split_dataset

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Twenty pictures, two of them with the same name."""
    for number in range(18):
        image_file(tmp_path / "archive" / "samples" / f"{number:04d}.jpg")
    image_file(tmp_path / "archive" / "a" / "ab12.png", "red")
    image_file(tmp_path / "archive" / "b" / "ab12.png", "blue")
    return tmp_path / "archive"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def run(monkeypatch: pytest.MonkeyPatch, script: str, *flags: object) -> int:
    """A script in this process."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
    return stopped.value.code


@pytest.mark.parametrize(
    ("total", "sizes"),
    [(10000, [8000, 500, 1500]), (20, [16, 1, 3]), (10, [7, 1, 2]), (3, [1, 1, 1]), (2, [1, 1, 0]), (1, [1, 0, 0])],
)
def test_sizes_by_ratio(total: int, sizes: list[int]) -> None:
    assert part_sizes(total) == sizes and sum(sizes) == total


def test_sizes_by_count(caplog: pytest.LogCaptureFixture) -> None:
    assert part_sizes(20000, counts=(8000, 500, 1500)) == [8000, 500, 1500] and not caplog.text
    assert part_sizes(9955, counts=(8000, 500, 1500)) == [8000, 500, 1455] and "9955" in caplog.text
    assert part_sizes(10, ratio=(8, 0, 2)) == [8, 0, 2]
    for wrong in ({"counts": (1, 2)}, {"ratio": (1, -1, 1)}, {"ratio": (0, 0, 0)}):
        with pytest.raises(ConfigError, match="three numbers"):
            part_sizes(10, **wrong)


def test_the_documents_seed(tmp_path: Path) -> None:
    files = [image_file(tmp_path / "archive" / f"{number}.jpg").name for number in range(12)]
    expected = sorted(files)
    random.seed(2023)
    random.shuffle(expected)
    split_dataset(tmp_path / "archive", tmp_path / "out", counts=(6, 2, 3), seed=2023)
    assert [names(tmp_path / "out" / part) for part in PARTS] == [
        sorted(expected[:6]), sorted(expected[6:8]), sorted(expected[8:11]),
    ]  # fmt: skip


def test_copying_keeps_the_source_and_every_answer(archive: Path, tmp_path: Path) -> None:
    before = everything(archive)
    sizes = split_dataset(archive, tmp_path / "out")
    assert sizes == {"train": 16, "valid": 1, "test": 3} and everything(archive) == before
    records = [record for part in PARTS for record in read_records(tmp_path / "out" / part)]
    assert sorted(r.turns[0][1] for r in records) == sorted(["ab12", "ab12", *(f"{i:04d}" for i in range(18))])
    assert sorted(everything(tmp_path / "out").values()) == sorted(before.values())
    again = split_dataset(archive, tmp_path / "again")
    assert again == sizes and everything(tmp_path / "again") == everything(tmp_path / "out")
    split_dataset(archive, tmp_path / "other", seed=1)
    assert everything(tmp_path / "other") != everything(tmp_path / "out")


def test_moving_and_linking(archive: Path, tmp_path: Path) -> None:
    split_dataset(archive, tmp_path / "linked", how="link")
    linked = tmp_path / "linked" / "train"
    assert all(os.stat(path).st_nlink == 2 or path.is_symlink() for path in linked.iterdir())
    split_dataset(archive, tmp_path / "moved", how="move")
    assert not everything(archive) and everything(tmp_path / "moved") == everything(tmp_path / "linked")
    with pytest.raises(ConfigError, match="copy, move or link"):
        split_dataset(archive, tmp_path / "x", how="steal")


def test_nothing_is_overwritten(archive: Path, tmp_path: Path) -> None:
    image_file(tmp_path / "out" / "valid" / "mine.png")
    with pytest.raises(InputError, match="valid exists and is not empty"):
        split_dataset(archive, tmp_path / "out")
    assert names(tmp_path / "out") == ["valid"]


def test_jsonl_keeps_pictures_together(tmp_path: Path) -> None:
    entries = []
    for number in range(12):
        image_file(tmp_path / "pictures" / f"{number % 6}" / "same.png", f"#0{number % 6}0000")
        entries.append({"id": number, "prompt": f"pictures/{number % 6}/same.png", "text": "x",
                        "image": f"pictures/{number % 6}/same.png", "extra": [number]})  # fmt: skip
    entries.append({"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]})
    source = write_jsonl(tmp_path / "all.jsonl", entries)
    sizes = split_dataset(source, tmp_path / "out", ratio=(4, 1, 1))
    assert sum(sizes.values()) == 13 and min(sizes.values()) > 0
    seen: list[set[bytes]] = []
    ids = []
    for part in PARTS:
        folder = tmp_path / "out" / part
        lines = [json.loads(line) for line in (folder / "all.jsonl").read_text().splitlines()]
        ids += [line.get("id") for line in lines]
        assert all(line["prompt"].startswith("pictures/") and line["extra"] for line in lines if "id" in line)
        records = read_records(folder)
        assert all(folder / "images" in image.parents for record in records for image in record.images)
        for record in records:
            if record.images:
                original = tmp_path / record.turns[0][0]
                assert record.images[0].read_bytes() == original.read_bytes()
        seen.append({image.read_bytes() for record in records for image in record.images})
    assert sorted(map(str, ids)) == sorted(map(str, [*range(12), None]))
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_sft311k_keeps_labels_with_pictures(tmp_path: Path) -> None:
    for number in range(6):
        image_file(tmp_path / "sft" / "one" / "images" / f"{number}.jpg")
        label = {"captions": [{"role": "caption", "content": f"{number}"}]}
        write_json(tmp_path / "sft" / "one" / "labels" / f"{number}.json", label)
    assert split_dataset(tmp_path / "sft", tmp_path / "out", counts=(3, 1, 2)) == {"train": 3, "valid": 1, "test": 2}
    for part, count in zip(PARTS, (3, 1, 2), strict=True):
        records = read_records(tmp_path / "out" / part)
        assert len(records) == count and all(r.images[0].stem == r.turns[0][1] for r in records)


def test_broken_data_are_not_split(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "x.jsonl", ["{"])
    with pytest.raises(InputError, match=r"x\.jsonl:1"):
        split_dataset(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_bare_command(archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(archive.parent)
    assert run(monkeypatch, "split_dataset.py") == 0
    assert "archive_split/train: 16" in capsys.readouterr().out
    assert names(Path("archive_split")) == ["test", "train", "valid"] and len(names(Path("archive_split/train"))) == 16
    assert run(monkeypatch, "split_dataset.py") == 2
    assert "not empty" in capsys.readouterr().err
    assert run(monkeypatch, "split_dataset.py", "nowhere") == 2
    assert run(monkeypatch, "split_dataset.py", "--counts", 1, 1, 1, "--output", "few", "--link") == 0
    assert [len(names(Path("few", part))) for part in PARTS] == [1, 1, 1]


def test_captchas_by_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ("--task", "captcha", "--digits", 3, "--count", 4, "--output", tmp_path / "archive")
    assert run(monkeypatch, "make_dataset.py", *flags) == 0
    records = read_records(tmp_path / "archive")
    assert len(records) == 4 and all(len(r.turns[0][1]) == 3 and r.turns[0][1].isdigit() for r in records)
    assert run(monkeypatch, "make_dataset.py", "--task", "captcha", "--digits", 0, "--output", tmp_path / "x") == 2


def test_the_printed_evaluation_takes_what_was_not_trained_on(tmp_path: Path) -> None:
    from sat_models.training.dialogue import DialogueTask
    from sat_models.training.finetune import next_steps
    from sat_models.training.loop import Outcome
    from sat_models.training.settings import FinetuneSettings

    (tmp_path / "train").mkdir()
    settings = FinetuneSettings(from_pretrained="m", train_data=(str(tmp_path / "train"),), save_path="s")
    outcome = Outcome(step=1, reason="finished")
    assert f"--data {tmp_path / 'train'}\n" in next_steps(settings, outcome, DialogueTask)
    (tmp_path / "valid").mkdir()
    assert f"--data {tmp_path / 'valid'}\n" in next_steps(settings, outcome, DialogueTask)
