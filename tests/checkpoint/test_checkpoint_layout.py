"""Every form in which weights are handed in is found; what is missing is named."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile

import pytest

from sat_models.checkpoint.find import find_checkpoint
from sat_models.errors import CheckpointError, ConfigError


def test_folder_step_file_and_config_beside_the_file(folder, file, tmp_path):
    for path in (folder, folder / "1", file, str(folder)):
        assert find_checkpoint(path).files == (file,)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(file, alone / "weights.pt")
    shutil.copy(folder / "model_config.json", alone)
    found = find_checkpoint(alone / "weights.pt")
    assert found.folder == alone and found.files == (alone / "weights.pt",)


def test_release_and_a_folder_without_latest(folder):
    (folder / "1").rename(folder / "release")
    (folder / "latest").write_text("release\n")
    assert find_checkpoint(folder).step_folder == folder / "release"
    (folder / "latest").unlink()
    assert find_checkpoint(folder).step_folder == folder / "release"
    shutil.copytree(folder / "release", folder / "7")
    with pytest.raises(CheckpointError, match="no file 'latest' and several steps; there is 7, release"):
        find_checkpoint(folder)


def test_one_part_stands_for_all(folder, golden):
    for source in (golden / "cogvlm-mini-mp2" / "1").iterdir():
        shutil.copy(source, folder / "1")
    assert len(find_checkpoint(folder / "1" / "mp_rank_01_model_states.pt").files) == 2
    (folder / "1" / "mp_rank_00_model_states.pt").unlink()
    with pytest.raises(CheckpointError, match=r"mp_rank_00_model_states\.pt missing"):
        find_checkpoint(folder)


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no SAT checkpoint.*model_config.json, 'latest'"):
        find_checkpoint(tmp_path / "empty")
    (folder / "latest").write_text("500")
    with pytest.raises(CheckpointError, match=r"says '500', but there is no folder .*; there is 1"):
        find_checkpoint(folder)
    (folder / "latest").write_text("../../etc")
    with pytest.raises(CheckpointError, match="must hold a step number or 'release'"):
        find_checkpoint(folder)
    (folder / "latest").write_text("1")
    (folder / "model_config.json").write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        find_checkpoint(folder)
    (folder / "model_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no model_config\.json in"):
        find_checkpoint(folder)


@pytest.mark.parametrize("inner", ["cogvlm-mini/", ""])
def test_an_archive_is_unpacked_once(folder, tmp_path, inner):
    archive = tmp_path / "cogvlm-mini.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for path in folder.rglob("*"):
            opened.write(path, inner + str(path.relative_to(folder)))
    found = find_checkpoint(archive)
    assert found.folder == tmp_path / "cogvlm-mini" and found.files[0].is_file()
    before = found.files[0].stat().st_mtime_ns
    archive.write_bytes(b"never read again")
    assert find_checkpoint(archive).files[0].stat().st_mtime_ns == before
    assert not [name for name in os.listdir(tmp_path) if "unpacking" in name]


def _archive_with(tmp_path, name: str, mode: int = 0):
    archive = tmp_path / "evil.zip"
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("model_config.json", "{}")
        opened.writestr(member, "/etc/passwd")
    return archive


@pytest.mark.parametrize(
    ("name", "mode"),
    [("../outside.txt", 0), ("/outside.txt", 0), ("a/../../x", 0), ("..\\x", 0), ("C:/x", 0), ("link", stat.S_IFLNK)],
)
def test_an_archive_that_points_out_of_itself_is_refused(tmp_path, name, mode):
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(CheckpointError, match="was refused: its member"):
        find_checkpoint(_archive_with(inside, name, mode))
    assert os.listdir(inside) == ["evil.zip"] and os.listdir(tmp_path) == ["inside"]


def test_a_damaged_archive_says_so(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04 half a download")
    with pytest.raises(CheckpointError, match="damaged or no usable archive"):
        find_checkpoint(tmp_path / "x.zip")
    assert os.listdir(tmp_path) == ["x.zip"]
