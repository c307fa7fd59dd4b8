"""Memory while loading: pages and freed memory given back, the watcher, and the bound on a checkpoint of gigabytes."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sat_models.bench.synthetic import write_synthetic
from sat_models.checkpoint.find import find_checkpoint
from sat_models.checkpoint.io import read_weights
from sat_models.checkpoint.memory import AnonymousPeak, anonymous_bytes, release_freed, release_pages
from sat_models.errors import ConfigError
from sat_models.models.build import make_config

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
BOUND = 1.15

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")


def _file_bytes() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssFile:"))


def test_pages_of_a_file_leave_and_come_back(tmp_path: Path) -> None:
    torch.save({"module": {"a": torch.arange(8 * MIB, dtype=torch.int32)}}, tmp_path / "a.pt")
    before = anonymous_bytes()
    value = read_weights(tmp_path / "a.pt")["a"]
    total = value.sum(dtype=torch.int64)
    mapped = _file_bytes()
    assert anonymous_bytes() - before < 8 * MIB, "reading must not copy"
    release_pages(value)
    assert mapped - _file_bytes() > 16 * MIB
    assert value.sum(dtype=torch.int64) == total


def test_memory_without_a_file_loses_nothing() -> None:
    value = torch.arange(4 * MIB, dtype=torch.int32)
    release_pages(value)
    release_pages(value.view(2048, -1).T)
    release_pages(torch.empty(3, device="meta"))
    assert value.equal(torch.arange(4 * MIB, dtype=torch.int32))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_freed_memory_between_blocks_in_use_leaves() -> None:
    blocks = [torch.ones(16 * 1024) for _ in range(1024)]
    del blocks[::2]
    before = anonymous_bytes()
    release_freed()
    assert before - anonymous_bytes() > 24 * MIB
    assert all(block.eq(1).all() for block in blocks)


def test_the_watcher_sees_what_is_gone_again() -> None:
    with AnonymousPeak() as peak:
        value = torch.ones(16 * MIB)
        peak._ended.wait(0.05)
        del value
    assert 60 * MIB < peak.bytes < 100 * MIB


def test_a_synthetic_checkpoint_has_its_size(tmp_path: Path) -> None:
    step = write_synthetic(tmp_path, gigabytes=0.9, parts=2)
    files = [file.stat().st_size for file in step.iterdir()]
    assert len(files) == 2 and 0.7e9 < sum(files) < 0.95e9
    assert make_config(find_checkpoint(tmp_path).config).num_layers >= 1
    with pytest.raises(ConfigError, match="is too small: one layer"):
        write_synthetic(tmp_path, gigabytes=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("flags", ["", "--processes 2", "--quant 4", "--quant 8", "--processes 2 --quant 4"])
def test_loading_takes_what_the_weights_need(flags: str) -> None:
    if "--quant" in flags:
        pytest.importorskip("bitsandbytes")
    command = [sys.executable, str(ROOT / "scripts" / "measure_loading.py"), "--gigabytes", "3", *flags.split()]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1800, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(reports) == (2 if "--processes" in flags else 1)
    for report in reports:
        assert report["needed"] > 0.5e9
        assert report["peak"] <= BOUND * report["needed"], report
