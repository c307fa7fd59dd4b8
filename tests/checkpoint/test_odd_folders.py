"""Folders that others wrote or edited: byte order marks, tied heads, another rotary base; and rights of new files."""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sat_models.checkpoint.hf_writer import save_hf
from sat_models.checkpoint.staging import write_tensors
from sat_models.errors import CheckpointError, ConfigError
from sat_models.zoo import load_pretrained

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
BOM = b"\xef\xbb\xbf"


def test_byte_order_marks_are_no_content(tmp_path: Path) -> None:
    """Editors on Windows put one in front of every text file."""
    for name in ("cogvlm-mini", "cogvlm-mini-hf"):
        folder = tmp_path / name
        shutil.copytree(GOLDEN / name, folder)
        texts = [folder / "latest", *folder.glob("*.json")]
        for path in (path for path in texts if path.is_file()):
            path.chmod(0o644)
            path.write_bytes(BOM + path.read_bytes())
        load_pretrained(folder, device="cpu", dtype="float32", local_tokenizer=GOLDEN / "cogvlm-mini")


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A Hugging Face folder that may be changed."""
    folder = tmp_path / "hub"
    shutil.copytree(GOLDEN / "cogvlm-mini-hf", folder)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def configure(folder: Path, **change: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_theta": 500000.0}, r"rope_theta = 500000\.0 is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear' is not supported"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, r"rope_theta = 1000000\.0"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings = True is not supported"),
        ({"num_key_value_heads": 1}, "num_key_value_heads = 1 is not supported"),
    ],
)
def test_what_a_config_says_is_not_passed_over(hub: Path, change: dict[str, Any], message: str) -> None:
    configure(hub, **change)
    with pytest.raises(ConfigError, match=message):
        load_pretrained(hub, device="cpu", local_tokenizer=GOLDEN / "cogvlm-mini")


def test_values_that_are_llamas_own_are_taken(hub: Path) -> None:
    configure(hub, rope_theta=10000, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}, rope_scaling=None)
    load_pretrained(hub, device="cpu", dtype="float32", local_tokenizer=GOLDEN / "cogvlm-mini")


def test_a_head_that_is_not_there_is_called_tied(hub: Path) -> None:
    index = hub / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    file = hub / content["weight_map"].pop("lm_head.weight")
    index.write_text(json.dumps(content))
    tensors = load_file(file)
    del tensors["lm_head.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"(?s)1 missing: lm_head\.weight.*tied to the word embeddings.*copy"):
        load_pretrained(hub, device="cpu", local_tokenizer=GOLDEN / "cogvlm-mini")


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_new_files_have_the_rights_that_the_umask_says(tmp_path: Path, mask: int) -> None:
    former = os.umask(mask)
    try:
        write_tensors({"a": torch.ones(2)}, tmp_path / "x.safetensors", {"format": "pt"})
        if mask == 0o022:
            save_hf(GOLDEN / "cogvlm-mini", tmp_path / "hub")
    finally:
        os.umask(former)
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask, path
    assert load_file(tmp_path / "x.safetensors")["a"].sum() == 2
