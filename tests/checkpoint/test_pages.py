"""Memory while loading: pages given back, the watcher, and the bound on a checkpoint of gigabytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sat_models.checkpoint.io import read_weights
from sat_models.checkpoint.layout import find_checkpoint
from sat_models.checkpoint.pages import AnonymousPeak, anonymous_bytes, release_pages
from sat_models.checkpoint.synthetic import write_synthetic
from sat_models.errors import ConfigError
from sat_models.models.build import make_config

ROOT = Path(__file__).resolve().parents[2]
MIB = 2**20
BOUND = 1.15
ONE_WEIGHT = 0.45e9
"""What the largest weight of that checkpoint takes while it is quantised, however many there are; measured 0.39."""

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
@pytest.mark.parametrize("flags", [[], ["--processes", "2"], ["--quant", "4"]], ids=["one", "two", "quantised"])
def test_loading_takes_what_the_weights_need(flags: list[str]) -> None:
    if "--quant" in flags:
        pytest.importorskip("bitsandbytes")
    command = [sys.executable, str(ROOT / "scripts" / "measure_loading.py"), "--gigabytes", "3", *flags]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1800, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(reports) == (2 if "--processes" in flags else 1)
    for report in reports:
        assert report["needed"] > 0.5e9
        on_the_way = ONE_WEIGHT if "--quant" in flags else 0
        assert report["peak"] <= BOUND * report["needed"] + on_the_way, report
